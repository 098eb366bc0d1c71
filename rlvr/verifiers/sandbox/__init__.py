"""A room in which a program that a policy wrote runs, and can touch nothing else. See `rooms.Room` and `levels`."""
