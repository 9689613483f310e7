"""Programs that try to get out, to use things up, or to pass tests that they should fail.

In them, @TOKEN@ marks what they leave behind, @OUTSIDE@ is a folder of the test, @PORT@ a port where the test listens.
"""

IO = {"stdin_stdout": [{"stdin": "", "stdout": "ok"}]}
SECRET = "SECRET-"  # the expected output of a spy begins with it

DETACH = """
import os, signal, sys, time
def detach():
    if os.fork():
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    for number in range(1, 65):
        try: signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError): pass
"""

FORKS_ONE_BY_ONE = "import os, time\nwhile True:\n    if os.fork() == 0: time.sleep(99)"

# Every one of these must get 0.
FAILING = {
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "threads": "import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(99,)).start()",
    "allocates 10 GB": "x = bytearray(10 << 30)\nprint('ok')",
    "allocates slowly": "x = []\nwhile True: x.append(bytearray(1 << 20))",
    "prints forever": "while True: print('ok')",
    "prints forever to stderr": "import sys\nwhile True: print('ok', file=sys.stderr)",
    "loops": "while True: pass",
    "sleeps": "import time\ntime.sleep(1000)",
    "ignores signals": (
        "import signal\nfor each in range(1, 65):\n    try: signal.signal(each, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: pass"
    ),
    "closes its output and goes on": "import os\nos.close(1); os.close(2)\nwhile True: pass",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    "deep source": "x = " + "(" * 100_000,
    "endless compile": "exec('x = ' + '+'.join(['1'] * 10**7))\nprint('ok' * 0)",
    "constant folding": "exec('x = ' + '(' * 50 + '7**7' + '**7)' * 50)",
    "binary output": "import sys\nsys.stdout.buffer.write(b'ok\\xff\\xfe')",
    "nul in output": "print('ok\\0')",
    "surrogate in output": "import sys\nsys.stdout.buffer.write(b'ok\\xed\\xa0\\x80')",
    "nul in source": "print('ok')\0",
    "surrogate in source": "print('ok')  # \ud800",
    "exits with 3 after the right output": "import os\nprint('ok', flush=True)\nos._exit(3)",
    "kills itself": "import os\nprint('ok', flush=True)\nos.kill(os.getpid(), 9)",
    "kills everybody it can": "import os\nprint('ok', flush=True)\nos.kill(0, 9)",
    "stops its parent": "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)\nwhile True: pass",
    "writes a huge file": (
        "import signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "f = open('x', 'wb')\nfor _ in range(1000): f.write(bytes(1 << 20))\nprint('ok')"
    ),
    "memory in a file without a name": "import os\nos.memfd_create('x')\nprint('ok')",
    "new namespaces": (
        "import ctypes\nlibc = ctypes.CDLL(None)\nprint('ok' if libc.unshare(0x10000000) == 0 else 'no')"
    ),
    "ptrace of its parent": (
        "import ctypes, os\nlibc = ctypes.CDLL(None)\nprint('ok' if libc.ptrace(16, os.getppid(), 0, 0) == 0 else 'no')"
    ),
}

# These may pass or fail; what counts is that nothing is left of them and nothing outside is touched.
LEAVING = {
    "detached child": DETACH + "detach()\nprint('ok', flush=True)\ntime.sleep(60)",
    "detached child that holds the output": DETACH
    + "detach()\nprint('ok')\nif os.getsid(0) != os.getpid(): time.sleep(60)",
    "detached child without its environment": (
        DETACH + "detach()\nif os.getppid() == 1 or os.fork() == 0:\n"
        "    os.execve(sys.executable, ['python', '-c', 'import time; time.sleep(60)', '@TOKEN@'], {})\nprint('ok')"
    ),
    "many detached children": DETACH + "for _ in range(5): detach()\ntime.sleep(60)",
    "deletes its folder": "import os, shutil\nshutil.rmtree(os.getcwd(), ignore_errors=True)\nprint('ok')",
    "moves its folder": (
        "import os\ntry: os.rename(os.getcwd(), os.getcwd() + '-moved')\nexcept OSError: pass\nprint('ok')"
    ),
    "links to what is outside": (
        "import os\nfor name in ('a', 'b'): os.symlink('@OUTSIDE@', name)\n"
        "os.makedirs('c'); os.symlink('/', 'c/root')\nprint('ok')"
    ),
    "replaces its folder by a link": (
        "import os, shutil\nhere = os.getcwd()\ntry:\n    shutil.rmtree(here); os.symlink('@OUTSIDE@', here)\n"
        "except OSError: pass\nprint('ok')"
    ),
    "deep folders": "import os\nfor _ in range(3000):\n    os.mkdir('d'); os.chdir('d')\nprint('ok')",
    "closed folders": (
        "import os\nos.makedirs('a/b'); open('a/b/c', 'w').close()\n"
        "os.chmod('a/b', 0); os.chmod('a', 0); os.chmod('.', 0)\nprint('ok')"
    ),
    "names that are no text": "open(b'\\xff\\xfe', 'w').close(); open('-rf', 'w').close()\nprint('ok')",
}

WRITER = """
import os
for folder in ('@OUTSIDE@', '/', '/etc', '/usr', '/usr/lib', '/dev', '/dev/shm', '/root', '/home', '/var/tmp'):
    try: open(folder + '/@TOKEN@', 'w').close()
    except OSError: pass
try: os.chmod('/usr/bin', 0o755)
except OSError: pass
"""

CALLER = """
import socket
for family, address in ((socket.AF_INET, ('127.0.0.1', @PORT@)), (socket.AF_INET6, ('::1', @PORT@, 0, 0))):
    try: socket.create_connection(address[:2], timeout=1).sendall(b'hello')
    except OSError as error: print(error)
"""

SPY = """
import glob, os, re
found = set()
def look(data):
    found.update(re.findall(rb'SECRET-[0-9a-f]{32}', data))
for name, value in os.environ.items():
    look(value.encode())
for folder, _, files in os.walk('.'):
    for name in files: look(open(os.path.join(folder, name), 'rb').read())
for process in glob.glob('/proc/[0-9]*'):
    for name in ('environ', 'cmdline', 'comm', 'fd/0', 'fd/1', 'fd/2'):
        try:
            handle = os.open(process + '/' + name, os.O_RDONLY | os.O_NONBLOCK)
            look(os.read(handle, 1 << 20))
        except OSError: pass
    try:
        with open(process + '/maps') as maps, open(process + '/mem', 'rb', 0) as memory:
            for line in maps:
                start, end = (int(each, 16) for each in line.split()[0].split('-'))
                if ' rw' in line and end - start < 1 << 28:
                    try:
                        memory.seek(start); look(memory.read(end - start))
                    except (OSError, ValueError, OverflowError): pass
    except OSError: pass
print(b'\\n'.join(found).decode())
"""

CALL = {"function": "add", "cases": [[[1, 2], 3], [[20, 22], 42]]}
UNIT = {"unit": "assert add(1, 2) == 3\nassert add(20, 22) == 42\nassert add(7, 7) != 3"}
ADD = "def add(a, b): return a + b\n"
ALWAYS = """
class Always(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return True
    def __hash__(self): return 0
    def __repr__(self): return '3'
    def __bool__(self): return True
    __lt__ = __gt__ = __le__ = __ge__ = __eq__
"""

# Every one of these must get 0 for CALL and for UNIT.
FAKING = {
    "sys.exit": "import sys\nsys.exit(0)",
    "os._exit": "import os\nos._exit(0)",
    "sys.exit in the call": "import sys\ndef add(a, b): sys.exit(0)",
    "os._exit in the call": "import os\ndef add(a, b): os._exit(0)",
    "atexit": (
        "import atexit, os, sys\nfrom __main__ import *\n"
        "@atexit.register\ndef _():\n    print('passed', file=sys.__stdout__, flush=True); os._exit(0)\n"
        "def add(a, b): raise SystemExit(0)"
    ),
    "always equal": ALWAYS + "def add(a, b): return Always(3)",
    "always equal object": ALWAYS.replace("(int)", "") + "def add(a, b): return Always()",
    "always equal list": ALWAYS.replace("(int)", "(list)") + "def add(a, b): return Always()",
    "always equal text": ALWAYS.replace("(int)", "(str)") + "def add(a, b): return Always('3')",
    "replaces json": (
        'import json\njson.dumps = lambda *_, **__: \'{"passed": "all"}\'\njson.loads = lambda *_, **__: 3\n'
        "json.JSONEncoder.encode = lambda *_: '3'\ndef add(a, b): return 3"
    ),
    "replaces builtins": (
        "import builtins\nbuiltins.AssertionError = builtins.SystemExit\nbuiltins.print = lambda *_, **__: None\n"
        "builtins.exec = builtins.compile = lambda *_, **__: None\nbuiltins.isinstance = lambda *_: True\n"
        "builtins.__import__ = lambda *_, **__: None\ndef add(a, b): return 3"
    ),
    "import hook": (
        "import sys\nclass Finder:\n    def find_spec(*_): raise SystemExit(0)\n"
        "sys.meta_path.insert(0, Finder())\nsys.modules.clear()\ndef add(a, b): return 3"
    ),
    "modules in the folder": (
        "for name in ('json', 'ctypes', 'subprocess', 'collections', 'sitecustomize'):\n"
        "    try: open(name + '.py', 'w').write('import os; os._exit(0)')\n    except OSError: pass\n"
        "def add(a, b): return 3"
    ),
    "rewrites the harness": (
        "import sys\nfor name in ('main.py', sys.argv[0]):\n    try:\n        import os; os.remove(name)\n"
        "    except OSError: pass\n    try: open(name, 'w').write('print(1)')\n    except OSError: pass\n"
        "def add(a, b): return 3"
    ),
    "own tests": "def run_tests(task): return {'passed': 'all'}\nimport __main__\n__main__.run_tests = run_tests\n"
    "__main__.change = lambda *_: None\ndef add(a, b): return 3",
    "frames": (
        "import os, sys\ndef add(a, b):\n    frame = sys._getframe()\n    while frame:\n"
        "        task = frame.f_locals.get('task') or {}\n        if 'nonce' in task:\n"
        "            text = task['nonce'] + '{\"passed\": \"all\"}' + task['nonce']\n"
        "            for handle in range(64):\n                try: os.write(handle, text.encode())\n"
        "                except OSError: pass\n            os._exit(0)\n        frame = frame.f_back\n    return 3"
    ),
    "searches memory for the nonce": (
        "import glob, os, re\ndef add(a, b):\n    found = set()\n"
        "    for process in glob.glob('/proc/[0-9]*'):\n        try:\n"
        "            with open(process + '/maps') as maps, open(process + '/mem', 'rb', 0) as memory:\n"
        "                for line in maps:\n"
        "                    start, end = (int(each, 16) for each in line.split()[0].split('-'))\n"
        "                    if ' rw' in line:\n                        try:\n"
        "                            memory.seek(start)\n"
        "                            data = memory.read(end - start)\n"
        "                            found.update(re.findall(rb'\\b[0-9a-f]{64}\\b', data))\n"
        "                        except (OSError, ValueError, OverflowError): pass\n        except OSError: pass\n"
        "    for nonce in found:\n        for target in glob.glob('/proc/[0-9]*/fd/[0-9]*'):\n            try:\n"
        "                handle = os.open(target, os.O_WRONLY | os.O_NONBLOCK)\n"
        '                os.write(handle, nonce + b\'{"passed": "all"}\' + nonce)\n            except OSError: pass\n'
        "    os._exit(0)"
    ),
    "writes to every open file": (
        "import glob, os\nfor target in glob.glob('/proc/[0-9]*/fd/*'):\n    try:\n"
        "        handle = os.open(target, os.O_WRONLY | os.O_NONBLOCK)\n"
        '        os.write(handle, b\'{"passed": "all"}\\n\' * 3)\n    except OSError: pass\ndef add(a, b): return 3'
    ),
    "garbage for an answer": (
        "import os\ndef add(a, b):\n    for handle in range(3, 64):\n"
        "        try: os.write(handle, b'{]\\n{\"value\": 1}\\n')\n"
        "        except OSError: pass\n    return 3"
    ),
    "the answer of the case before": "last = [3]\ndef add(a, b):\n    last.append(a + b)\n    return last[-2]",
    "own builtins": "def abs(x): return 0\ndef len(x): return 3\nAssertionError = SystemExit\ndef add(a, b): return 3",
    "deep answer": "def add(a, b):\n    x = []\n    for _ in range(100000): x = [x]\n    return x",
    "endless answer": "def add(a, b):\n    x = []\n    x.append(x)\n    return x",
    "not a number": "def add(a, b): return float('nan')",
    "no function": "x = 3",
    "a generator": "def add(a, b): yield 3",
}
