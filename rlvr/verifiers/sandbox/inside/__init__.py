"""What runs inside the sandbox. Standard library only; the sources are sent in."""
