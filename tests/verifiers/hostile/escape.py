"""Programs that want out.

Marks that are replaced: FILE and FOLDER (outside, open to everybody), PORT, PATH and ABSTRACT (sockets that somebody
listens at), PID (of the process that runs the verifier).
"""

ESCAPE = {
    "reads_a_file": "print(open(FILE).read())",
    "writes_a_file": "open(FILE, 'w').write('mine')",
    "creates_a_file": "open(FOLDER + '/mine', 'w')",
    "removes_a_file": "import os; os.remove(FILE)",
    "renames_a_file": "import os; os.rename(FILE, FOLDER + '/x')",
    "truncates_a_file": "import os; os.truncate(FILE, 0)",
    "truncates_by_opening": "import os; os.open(FILE, os.O_RDONLY | os.O_TRUNC)",
    "chmod": "import os; os.chmod(FILE, 0o4777)",
    "chown": "import os; os.chown(FILE, 0, 0)",
    "utime": "import os; os.utime(FILE, (0, 0))",
    "setxattr": "import os; os.setxattr(FILE, 'user.x', b'1')",
    "symlink": r"""
import os
os.symlink(FILE, 'link')
open('link', 'a').write('mine')
""",
    "hard_link": r"""
import os
os.link(FILE, 'link')
open('link', 'a').write('mine')
""",
    "dot_dot": "open('../../../../../../..' + FILE, 'a').write('mine')",
    "proc_root": "open('/proc/1/root' + FILE, 'a').write('mine')",
    "proc_cwd": "open('/proc/PID/cwd/README.md').read()",
    "proc_mem": "open('/proc/self/mem', 'r+b'); open('/proc/PID/mem', 'r+b')",
    "proc_environ": "print(open('/proc/PID/environ').read())",
    "proc_fds": r"""
import os
for n in range(64):
    try: open(f'/proc/PID/fd/{n}', 'wb').write(b'x')
    except OSError: pass
""",
    "parents_proc_fds": r"""
import os
for p in (1, os.getppid()):
    for n in range(64):
        try: open(f'/proc/{p}/fd/{n}', 'wb').write(b'{"ended": 0}')
        except OSError: pass
""",
    "suid_file": r"""
import os
open('s', 'w').write('#!/bin/sh')
os.chmod('s', 0o4755)
os.execv('./s', ['s'])
""",
    "dev_nodes": r"""
import os, stat
os.mknod('d', stat.S_IFBLK | 0o666, os.makedev(8, 0))
""",
    "reads_tests": r"""
import glob
print([open(p).read() for p in glob.glob('/**/*test*', recursive=True)[:5]])
""",
    "fork": "import os; os.fork()",
    "double_fork": r"""
import os, time
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        while True: open(FILE, 'a').write('mine'); time.sleep(0.01)
    os._exit(0)
""",
    "fork_bomb": r"""
import os
while True: os.fork()
""",
    "vfork_and_clone": r"""
import ctypes
c = ctypes.CDLL(None)
for n in (56, 57, 58, 435): c.syscall(n, 0, 0, 0, 0, 0)
""",
    "subprocess": "import subprocess; subprocess.run(['/bin/sh', '-c', 'echo mine >> ' + FILE])",
    "system": "import os; os.system('sleep 1000 &')",
    "posix_spawn": "import os; os.posix_spawn('/bin/sh', ['sh', '-c', 'sleep 1000'], {})",
    "multiprocessing": r"""
import multiprocessing, time
p = multiprocessing.get_context('fork').Process(target=time.sleep, args=(1000,)); p.start()
""",
    "exec": "import os; os.execv('/usr/bin/env', ['env'])",
    "daemon": r"""
import os
os.setsid(); os.setpgid(0, 0)
""",
    "kill_parent": "import os, signal; os.kill(os.getppid(), signal.SIGKILL)",
    "kill_worker": "import os, signal; os.kill(PID, signal.SIGKILL)",
    "kill_all": "import os, signal; os.kill(-1, signal.SIGKILL)",
    "kill_group": "import os, signal; os.killpg(0, signal.SIGKILL)",
    "kill_process_1": "import os, signal; os.kill(1, signal.SIGKILL)",
    "pidfd_signal": "import os, signal; signal.pidfd_send_signal(os.pidfd_open(PID), signal.SIGKILL)",
    "sigio_to_others": r"""
import fcntl, os
r, w = os.pipe()
fcntl.fcntl(r, fcntl.F_SETOWN, PID); fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC); os.write(w, b'x')
""",
    "ptrace": r"""
import ctypes
c = ctypes.CDLL(None)
for p in (1, 2, PID): c.ptrace(16, p, 0, 0)
""",
    "process_vm": r"""
import ctypes
c = ctypes.CDLL(None)
for p in (1, PID): c.syscall(310, p, 0, 0, 0, 0, 0); c.syscall(311, p, 0, 0, 0, 0, 0)
""",
    "inet": "import socket; socket.create_connection(('127.0.0.1', PORT), 1).send(b'mine')",
    "udp": r"""
import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'mine', ('127.0.0.1', PORT))
""",
    "unix": "import socket; socket.socket(socket.AF_UNIX).connect(PATH)",
    "abstract": r"import socket; socket.socket(socket.AF_UNIX).connect('\0' + ABSTRACT)",
    "pair_to_elsewhere": r"""
import socket
a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
a.connect(PATH)
""",
    "stream_pair_to_elsewhere": r"""
import socket
a, b = socket.socketpair()
a.connect(PATH)
""",
    "netlink": "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
    "packet": "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "vsock": "import socket; socket.socket(40, socket.SOCK_STREAM)",
    "listen": "import socket; socket.create_server(('0.0.0.0', 0))",
    "http": "import urllib.request; urllib.request.urlopen('http://127.0.0.1:PORT/', timeout=1)",
    "io_uring": r"""
import ctypes
c = ctypes.CDLL(None)
c.syscall(425, 8, ctypes.create_string_buffer(256))
""",
    "userfaultfd": "import ctypes; ctypes.CDLL(None).syscall(323, 1)",
    "unshare": "import ctypes; ctypes.CDLL(None).unshare(0x10000000 | 0x20000)",
    "mount": "import ctypes; ctypes.CDLL(None).mount(b'none', b'/', b'tmpfs', 0, b'')",
    "new_mount_calls": r"""
import ctypes
c = ctypes.CDLL(None)
for n in range(428, 434): c.syscall(n, 0, 0, 0, 0, 0)
""",
    "umount": r"""
import ctypes, os
own = os.getcwd()
for folder in (own, os.path.dirname(own)): ctypes.CDLL(None).umount2(folder.encode(), 2)
""",
    "chroot": "import os; os.chroot('.')",
    "pivot": "import ctypes; ctypes.CDLL(None).syscall(155, b'.', b'.')",
    "keyctl": r"""
import ctypes
c = ctypes.CDLL(None)
c.syscall(248, b'user', b'x', b'y', 1, -3); c.syscall(250, 0, -3, 1)
""",
    "bpf": "import ctypes; ctypes.CDLL(None).syscall(321, 0, 0, 0)",
    "shared_memory": "import ctypes; ctypes.CDLL(None).syscall(29, 1234, 4096, 0o1666)",
    "message_queue": "import ctypes; ctypes.CDLL(None).syscall(68, 1234, 0o1666)",
    "handle": "import ctypes; ctypes.CDLL(None).syscall(304, 3, 0, 0)",
    "x32": "import ctypes; ctypes.CDLL(None).syscall(0x40000000 + 57)",
    "i386": r"""
import ctypes, mmap
m = mmap.mmap(-1, 4096, prot=7)
m.write(b'\xb8\x02\x00\x00\x00\xcd\x80\xc3')
ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()
""",
    "setuid": "import os; os.setuid(0)",
    "set_host_name": "import socket; socket.sethostname('mine')",
    "set_clock": "import time; time.clock_settime(time.CLOCK_REALTIME, 0)",
    "priority": r"""
import os
os.setpriority(os.PRIO_USER, 0, 19); os.sched_setaffinity(PID, {0})
""",
    "raise_limits": r"""
import resource
for r in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE):
    resource.setrlimit(r, (resource.RLIM_INFINITY,) * 2)
""",
    "limits_of_others": "import resource; resource.prlimit(PID, resource.RLIMIT_CPU, (1, 1))",
    "terminal": r"""
import fcntl
for n in range(3): fcntl.ioctl(n, 0x5412, b'x')
""",
    "dump_core": r"""
import os, resource
try: resource.setrlimit(resource.RLIMIT_CORE, (-1, -1))
except ValueError: pass
os.abort()
""",
    "inotify": "import ctypes; ctypes.CDLL(None).syscall(294, 0)",
}
