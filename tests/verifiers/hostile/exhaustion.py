"""Programs that take all there is, and programs that never end."""

EXHAUSTION = {
    "memory_bomb": r"""
x = []
while True: x.append(bytearray(1 << 26))
""",
    "memory_in_f": "def f(x): return 'a' * (1 << 40)",
    "mmap_bomb": r"""
import mmap
x = []
while True: x.append(mmap.mmap(-1, 1 << 28))
""",
    "large_answer": "def f(x): return 'a' * (1 << 26)",
    "large_list": "def f(x): return list(range(3_000_000))",
    "large_number": "def f(x): return 1 << 100_000_000",
    "number_as_text": r"""
import sys
sys.set_int_max_str_digits(0)
def f(x): return str(7 ** 1_000_000)[:1]
""",
    "ten_megabytes": r"""
import sys
sys.stdout.write('x' * 10_000_000)
""",
    "hundred_megabytes_on_stderr": r"""
import sys
for _ in range(100): sys.stderr.write('x' * 1_000_000)
""",
    "thread_bomb": r"""
import threading, time
while True: threading.Thread(target=time.sleep, args=(1000,)).start()
""",
    "small_thread_bomb": r"""
import threading, time
threading.stack_size(32768)
while True: threading.Thread(target=time.sleep, args=(1000,)).start()
""",
    "file_bomb": r"""
n = 0
while True:
    open(f'f{n}', 'w').write('x' * 100000)
    n += 1
""",
    "deep_folders": r"""
import os
while True:
    os.mkdir('d'); os.chdir('d')
""",
    "descriptor_bomb": r"""
import os
x = []
while True: x.append(os.pipe())
""",
    "deep_recursion": r"""
import sys
sys.setrecursionlimit(10 ** 9)
def g(n): return g(n + 1)
g(0)
""",
    "deep_c_recursion": r"""
import sys
sys.setrecursionlimit(10 ** 9)
class A:
    def __repr__(self): return repr(self)
repr(A())
""",
    "deep_expression": "f = lambda x: " + "(" * 150 + "1" + ")" * 150,
    "very_deep_expression": "f = lambda x: " + "-" * 200_000 + "1",
    "long_line": "x = [" + "1," * 200_000 + "]",
    "zip_of_nothing": r"""
import zlib
x = zlib.compress(b'x' * (1 << 26)) * 100
def f(n): return [zlib.decompress(x) for _ in range(1000)][0]
""",
}

# These take their whole limit.
HANGS = {
    "loops": "while True: pass",
    "loops_in_f": r"""
def f(x):
    while True: pass
""",
    "sleeps": "import time; time.sleep(1000)",
    "ignores_signals": r"""
import signal
for n in range(1, 65):
    try: signal.signal(n, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass
""",
    "power_tower": "def f(x): return 9**9**9**9",
    "regex": r"""
import re
def f(x): return re.match('(a+)+b', 'a' * 60)
""",
    "prints_for_ever": "while True: print('x' * 1000)",
    "answers_for_ever": r"""
def f(x):
    while True: yield 1847
import builtins
""",
    "waits_for_a_thread": r"""
import threading
threading.Thread(target=threading.Event().wait).start()
""",
    "waits_at_exit": "import atexit, time; atexit.register(time.sleep, 1000)",
    "reads_for_ever": r"""
import sys
while True: sys.stdin.read()
""",
    "hangs_in_eq": r"""
class A:
    def __eq__(self, o):
        while True: pass
    __len__ = __bool__ = __hash__ = __getattr__ = __eq__
def f(x): return A()
""",
    "swallows_everything": r"""
while True:
    try:
        while True: pass
    except BaseException: pass
""",
    "finally_loops": r"""
try: raise ValueError
finally:
    while True: pass
""",
}
