"""Where programs that nobody has read are run.

| | `bubblewrap` | `sandbox_fusion` | `unsafe_subprocess` |
|---|---|---|---|
| network | none | as the server is set up | open |
| files | read-only system and interpreter; scratch in memory | the server's | all of this user's |
| other processes | invisible | the server's | visible, can be killed |
| end of a run | the process namespace dies | the server's | supervisor kills what it adopted |
| CPU time, memory, processes, file size, output | limited | time, memory, output | limited |
| environment, arguments, open files of the caller | none | none | none handed down; readable in /proc |

`docs/sandbox.md` says what each one does not stop.
"""

import importlib
from urllib.parse import urlsplit

from rewards.sandbox.interface import Limits, Ran, Sandbox, SandboxFailure
from rlvr.errors import RewardError

__all__ = ["BACKENDS", "Limits", "Ran", "Sandbox", "SandboxFailure", "choose"]

BACKENDS = ("auto", "bubblewrap", "sandbox_fusion", "unsafe_subprocess")
REMEDY = (
    "install it (apt-get install bubblewrap) and allow namespaces, or set `backend: sandbox_fusion` with `server_url`,"
    " or accept the risk with `backend: unsafe_subprocess`"
)


def choose(backend: str, server_url: str | None) -> Sandbox:
    """The sandbox of that name; `auto` is bubblewrap or a refusal, never something weaker. Raises RewardError."""
    if backend not in BACKENDS:
        raise RewardError(f"reward 'code': there is no backend {backend!r}; backends are {', '.join(BACKENDS)}")
    if backend == "sandbox_fusion":
        if urlsplit(server_url or "").scheme not in ("http", "https"):
            raise RewardError("reward 'code': backend sandbox_fusion needs `server_url`, such as http://localhost:8080")
        sandbox: Sandbox = importlib.import_module("rewards.sandbox.sandbox_fusion").SandboxFusion(server_url)
        return sandbox
    if server_url is not None:
        raise RewardError(f"reward 'code': backend {backend} takes no `server_url`; set `backend: sandbox_fusion`")
    if backend == "unsafe_subprocess":
        sandbox = importlib.import_module("rewards.sandbox.unsafe_subprocess").UnsafeSubprocess()
        return sandbox
    bubblewrap = importlib.import_module("rewards.sandbox.bubblewrap")
    reason = bubblewrap.why_unusable()
    if reason is not None:
        raise RewardError(f"reward 'code' runs programs in bubblewrap, which does not work here: {reason}; {REMEDY}")
    sandbox = bubblewrap.Bubblewrap()
    return sandbox
