# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""A ``python`` for tests that starts within 0.2 seconds, where an import of torch and MONAI takes five.

``python()`` is the path of a program that takes the arguments of the interpreter. A server that has imported torch and
MONAI forks for each call, and the fork runs the module, the code or the file. So each call has a process of its own,
with its own exit status, signals, logging, random state and memory. The program passes on its standard streams,
working directory, environment and signals, and ends as the fork does; where it is killed, so is the fork.
"""

import atexit
import contextlib
import functools
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

# What most commands import. The bundle's own code is left out, because some tests run that of a copy.
MODULES = (
    "torch._dynamo",
    "torch.utils.tensorboard",
    "monai.bundle",
    "monai.engines",
    "monai.handlers",
    "monai.losses",
    "monai.transforms",
    "nibabel",
    "scipy.ndimage",
    "rich.progress",
)


@functools.cache
def python() -> str:
    """Start the server, once in a process, and return the program's path, whose name is ``python``."""
    folder = tempfile.TemporaryDirectory(prefix="forks-")
    place, program = Path(folder.name) / "socket", Path(folder.name) / "python"
    code = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nimport forks\nforks.call({str(place)!r})\n"
    program.write_text(f"#!{sys.executable} -IS\n{code}")
    program.chmod(0o755)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(place))
    listener.listen()
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", __file__, str(listener.fileno()), str(program)],
        pass_fds=[listener.fileno()],
        # Streams that are pipes are not sought in, whatever the forks put in their places.
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    listener.close()

    def end() -> None:
        _, said = server.communicate()  # The end of its input ends the server.
        print(said, end="", file=sys.stderr)
        folder.cleanup()

    atexit.register(end)
    return str(program)


# The program.


def call(place: str) -> None:
    """Have the server run the arguments of this process, and end as that does."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(place)
    request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(connection, [len(request).to_bytes(8, "big")], [0, 1, 2])
    connection.sendall(request)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: connection.sendall(bytes([number])))
    answer = connection.recv(8, socket.MSG_WAITALL)
    if not answer:
        sys.exit("the server of tests/forks.py has ended")
    status = int.from_bytes(answer, "big", signed=True)
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


# The server.


def serve(listener: socket.socket, program: str) -> None:
    """Fork for each connection, pass on its signals and return the fork's status."""
    for module in MODULES:
        __import__(module)
    connections: dict[int, tuple[socket.socket, int]] = {}  # by the descriptor of the fork's process
    while True:
        streams = {connection.fileno(): fork for fork, (connection, _) in connections.items()}
        for ready in select.select([0, listener.fileno(), *connections, *streams], [], [])[0]:
            if ready == 0:
                return
            if ready == listener.fileno():
                connection, _ = listener.accept()
                head, files, _, _ = socket.recv_fds(connection, 8, 3)
                request = connection.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
                process = os.fork()
                if process == 0:
                    for number, file in enumerate(files):
                        os.dup2(file, number)
                    for file in (*files, *connections, *streams, connection.fileno(), listener.fileno()):
                        os.close(file)
                    run(program, *json.loads(request))
                for file in files:
                    os.close(file)
                connections[os.pidfd_open(process)] = (connection, process)
            elif ready in streams and streams[ready] in connections:
                with contextlib.suppress(ConnectionError):
                    sent = connections[streams[ready]][0].recv(1)
                    os.kill(connections[streams[ready]][1], sent[0] if sent else signal.SIGKILL)
            elif ready in connections:
                connection, process = connections.pop(ready)
                status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
                with contextlib.suppress(OSError):
                    connection.sendall(status.to_bytes(8, "big", signed=True))
                connection.close()
                os.close(ready)


def run(program: str, arguments: list[str], cwd: str, environment: dict[str, str]) -> None:
    """Do in the fork what the interpreter does with ``arguments``, and end with the status that it would have."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    # What this process starts is forked, too.
    sys.executable = program
    while arguments[0] in ("-u", "-W"):
        del arguments[: 1 + (arguments[0] == "-W")]
    places = [place for place in environment.get("PYTHONPATH", "").split(os.pathsep) if place]
    first = {"-c": "", "-m": cwd}.get(arguments[0], os.path.dirname(os.path.realpath(arguments[0])))
    sys.path[:1] = [first, *places]
    status: object = 0
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            exec(compile(arguments[1], "<string>", "exec"), sys.modules["__main__"].__dict__)
        else:
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        status = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    if status is not None and not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
