"""Has a program run in a fork of the warm process: SOCKET PROGRAM ARGUMENTS.

Ends with its exit code, passes signals on.
"""

import json
import os
import signal
import socket
import sys

with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
    server.connect(sys.argv[1])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: server.send(bytes([number])) and None)
    # no pathlib: this must start in a moment
    request = json.dumps({"argv": sys.argv[2:], "environ": dict(os.environ), "cwd": os.getcwd()}).encode()  # noqa: PTH109
    socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(request)
    answer = server.recv(2)
if len(answer) < 2:
    sys.exit("the warm process is gone")
code, ended_by = answer
if ended_by:
    signal.signal(ended_by, signal.SIG_DFL)
    os.kill(os.getpid(), ended_by)
sys.exit(code)
