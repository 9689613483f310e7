"""Runs between a sandbox and the program: sets every limit, then becomes the program.

This file is handed to `python -I -S -c`, so it imports nothing but the standard library. With `supervise` it stays as
the parent of the program, adopts whatever the program leaves behind, and kills all of it at the end.
"""

import contextlib
import ctypes
import json
import os
import platform
import resource
import signal
import struct
import subprocess
import sys
import time
from typing import Any

PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 24, 22, 36, 38
SIGNALS = {signal.SIGCHLD, signal.SIGTERM}
PROCESS_START_FAILED = 126

# System calls that reach into other processes, into parts of the kernel that no test program needs, or that hold memory
# which no limit counts. Numbers of clone, and then of unshare setns mount umount2 pivot_root ptrace process_vm_readv
# process_vm_writev bpf perf_event_open | keyctl add_key request_key userfaultfd kexec_load init_module finit_module
# memfd_create shmget. The same everywhere: io_uring_setup open_tree move_mount fsopen fsmount pidfd_getfd memfd_secret.
EVERYWHERE = (425, 428, 429, 430, 432, 438, 447)
ARCHITECTURES = {
    "x86_64": (
        0xC000003E,
        56,
        (272, 308, 165, 166, 155, 101, 310, 311, 321, 298, 250, 248, 249, 323, 246, 175, 313, 319, 29),
    ),
    "aarch64": (
        0xC00000B7,
        220,
        (97, 268, 40, 39, 41, 117, 270, 271, 280, 241, 219, 217, 218, 282, 104, 105, 273, 279, 194),
    ),
}
CLONE3, NEW_NAMESPACE, X32_CALLS = 435, 0x7E020000, 0x40000000
LOAD, EQUALS, AT_LEAST, HAS_BITS, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL, FAIL = 0x7FFF0000, 0x80000000, 0x00050000
EPERM, ENOSYS = 1, 38


def prctl(option: int, argument: Any, more: Any = 0) -> int:
    """The system call; all its arguments are as wide as a pointer."""
    libc = ctypes.CDLL(None, use_errno=True)
    pointer = ctypes.c_void_p
    zero = pointer(0)
    return int(libc.prctl(option, pointer(argument), pointer(more), zero, zero))


def filter_program(machine: str) -> bytes:
    """The seccomp filter for a machine, empty where its system calls are not listed here."""
    if machine not in ARCHITECTURES:
        return b""
    architecture, clone, denied = ARCHITECTURES[machine]
    rules = [(LOAD, 0, 0, 4), (EQUALS, 1, 0, architecture), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    rules += [(AT_LEAST, 0, 1, X32_CALLS), (RETURN, 0, 0, FAIL | EPERM)] if machine == "x86_64" else []
    # glibc uses clone where clone3, whose flags a filter cannot see, does not exist.
    rules += [(EQUALS, 0, 1, CLONE3), (RETURN, 0, 0, FAIL | ENOSYS)]
    for number in (*denied, *EVERYWHERE):
        rules += [(EQUALS, 0, 1, number), (RETURN, 0, 0, FAIL | EPERM)]
    rules += [(EQUALS, 0, 3, clone), (LOAD, 0, 0, 16), (HAS_BITS, 0, 1, NEW_NAMESPACE), (RETURN, 0, 0, FAIL | EPERM)]
    rules += [(RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("=HBBI", *rule) for rule in rules)


def filter_system_calls() -> None:
    code = filter_program(platform.machine())
    if not code:
        return
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
    header = ctypes.create_string_buffer(program, len(program))
    if prctl(PR_SET_SECCOMP, 2, ctypes.addressof(header)) != 0:
        raise OSError(ctypes.get_errno(), "cannot filter system calls")


def confine(settings: dict[str, Any]) -> None:
    """Sets the limits of this process, and gives up every privilege it may have."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # short of memory, the kernel takes these processes first
    seconds, memory, size = int(settings["seconds"]) + 2, settings["memory_mb"] << 20, settings["file_mb"] << 20
    count = settings["processes"] + (tasks_of_user() if settings["supervise"] else 0)
    for limit, soft, hard in (
        (resource.RLIMIT_CPU, seconds, seconds + 1),
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_FSIZE, size, size),
        (resource.RLIMIT_NOFILE, settings["open_files"], settings["open_files"]),
        (resource.RLIMIT_NPROC, count, count),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        highest = resource.getrlimit(limit)[1]
        bounds = [value if highest == resource.RLIM_INFINITY else min(value, highest) for value in (soft, hard)]
        resource.setrlimit(limit, (bounds[0], bounds[1]))
    if os.geteuid() == 0:
        for capability in range(64):
            prctl(PR_CAPBSET_DROP, capability)
    if settings["uid"]:
        os.setgroups([])
        os.setresgid(settings["uid"], settings["uid"], settings["uid"])
        os.setresuid(settings["uid"], settings["uid"], settings["uid"])
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    filter_system_calls()


def become(settings: dict[str, Any], command: list[str]) -> None:
    """Confines this process, says so on the status pipe, and becomes the program, which does not get the pipe."""
    status = settings["status_fd"]
    os.set_inheritable(status, False)
    confine(settings)
    os.write(status, b"s")
    os.execv(command[0], command)


def processes() -> dict[int, tuple[int, int]]:
    """Parent and number of threads of each process."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            # The command in parentheses may hold anything, so the fields are counted from its end.
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
                found[int(name)] = (int(fields[1]), int(fields[17]))
    return found


def tasks_of_user() -> int:
    """Threads of all processes of this user, which is what the kernel counts."""
    count, user = 0, os.getuid()
    for pid, (_, threads) in processes().items():
        with contextlib.suppress(OSError):
            count += threads if os.stat(f"/proc/{pid}").st_uid == user else 0
    return count


def descendants() -> set[int]:
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in processes().items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    waiting = [os.getpid()]
    while waiting:
        new = set(children.get(waiting.pop(), [])) - found
        found |= new
        waiting += new
    return found


def send(pids: set[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def kill_descendants(seconds: float) -> None:
    """Stops them all first, as a process that is stopped cannot fork, then kills them."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        stopped: set[int] = set()
        while (new := descendants() - stopped) and time.monotonic() < deadline:
            send(new, signal.SIGSTOP)
            stopped |= new
        send(stopped, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            time.sleep(0.005)
            continue
        return  # there is no child left


def remove_tree(folder: str) -> None:
    """Removes a folder that a hostile program filled: nested too deep for recursion, not writable, full of links."""
    if os.path.lexists(folder):
        subprocess.run(["chmod", "-R", "u+rwX", "--", folder], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["rm", "-rf", "--", folder], check=False, stderr=subprocess.DEVNULL)


def supervise(settings: dict[str, Any], command: list[str]) -> int:
    """Runs the program as a child. Returns its exit status once nothing that it started is left."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != settings["parent"]:
        return PROCESS_START_FAILED  # it died before the line above
    child = os.fork()
    if child == 0:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        try:
            become(settings, command)
        finally:
            os._exit(PROCESS_START_FAILED)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    os.close(settings["status_fd"])
    code = None
    while code is None:
        arrived = signal.sigtimedwait(SIGNALS, 0.05)
        if arrived and arrived.si_signo == signal.SIGTERM:
            break
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                code = os.waitstatus_to_exitcode(ended[1]) if ended[0] == child else code
        # The kernel does not hold root to the process limit.
        if code is None and os.getuid() == 0 and len(descendants()) > settings["processes"]:
            break
    kill_descendants(10.0)
    remove_tree(settings["scratch"])
    if code is None:
        return 128 + signal.SIGKILL
    return code if code >= 0 else 128 - code


def main() -> None:
    settings, command = json.loads(sys.argv[1]), sys.argv[2:]
    if settings["supervise"]:
        sys.exit(supervise(settings, command))
    become(settings, command)


if __name__ == "__main__":
    main()
