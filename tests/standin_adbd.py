"""A device-side stand-in for adb: speaks the real protocol (version 1 transport) over loopback, so that the real `adb`
program can be tested against it without a phone. Commands run in a shell whose root is a folder.

    with StandIn(folder, serial) as device: ...     # `adb connect` has been done; device.serial is what adb calls it
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BANNER = b"device::ro.product.name=standin;ro.product.model=StandIn;ro.product.device=standin;features=cmd"
CNXN, OPEN, OKAY, CLSE, WRTE = (struct.unpack("<I", word)[0] for word in (b"CNXN", b"OPEN", b"OKAY", b"CLSE", b"WRTE"))
CHUNK = 64 * 1024
EMULATOR = "qemu-aarch64-static -cpu cortex-a76"
PROPERTIES = {
    "ro.product.model": "StandIn",
    "ro.build.fingerprint": "edgediff/standin/1",
    "ro.product.cpu.abi": "arm64-v8a",
    "ro.edgediff.standin": "1",
    "ro.kernel.qemu": "",
    "ro.boot.qemu": "",
}


class _Connection:
    def __init__(self, root: Path, android: bool, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.root, self.android, self.reader, self.writer = root, android, reader, writer
        self.streams: dict[int, tuple[int, asyncio.Queue[bytes | None], asyncio.Semaphore]] = {}
        self.services: set[asyncio.Task[None]] = set()
        self.next_id = 1

    def send(self, command: int, first: int, second: int, data: bytes = b"") -> None:
        head = (command, first, second, len(data), sum(data) & 0xFFFFFFFF, command ^ 0xFFFFFFFF)
        self.writer.write(struct.pack("<6I", *head) + data)

    async def serve(self) -> None:
        try:
            while True:
                command, first, second, size, _, _ = struct.unpack("<6I", await self.reader.readexactly(24))
                data = await self.reader.readexactly(size) if size else b""
                if command == CNXN:
                    self.send(CNXN, 0x01000001, 256 * 1024, BANNER)
                elif command == OPEN:
                    local, self.next_id = self.next_id, self.next_id + 1
                    self.streams[local] = (first, asyncio.Queue(), asyncio.Semaphore(1))
                    self.send(OKAY, local, first)
                    service = asyncio.create_task(self._service(local, data.rstrip(b"\0").decode()))
                    self.services.add(service)
                    service.add_done_callback(self.services.discard)
                elif command == WRTE and second in self.streams:
                    self.send(OKAY, second, first)
                    self.streams[second][1].put_nowait(data)
                elif command == OKAY and second in self.streams:
                    self.streams[second][2].release()
                elif command == CLSE and second in self.streams:
                    self.streams.pop(second)[1].put_nowait(None)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            for service in self.services:
                service.cancel()
            await asyncio.gather(*self.services, return_exceptions=True)

    async def _write(self, local: int, data: bytes) -> None:
        for start in range(0, len(data), CHUNK):
            if local not in self.streams:
                return
            remote, _, free = self.streams[local]
            await free.acquire()
            self.send(WRTE, local, remote, data[start : start + CHUNK])
            await self.writer.drain()

    async def _service(self, local: int, service: str) -> None:
        remote = self.streams[local][0]
        kind, _, rest = service.partition(":")
        if kind in ("shell", "exec"):
            # The device's folders are below `root`: their names are rewritten in what is run.
            command = re.sub(r"/data/local/tmp", f"{self.root}/data/local/tmp", rest)
            # Its processor is this machine's: what is for Arm runs under emulation.
            command = re.sub(r"(\S*/ld-linux-aarch64\.so\.1)", rf"{EMULATOR} \1", command)
            known = "".join(f'[ "$1" = {key} ] && echo "{value}";' for key, value in PROPERTIES.items())
            get = f"getprop() {{ {known} :; }};" if self.android else ""
            told = f"{self.root}/battery"
            tools = f"{get} dumpsys() {{ cat {told} 2>/dev/null; }};"
            process = await asyncio.create_subprocess_exec(
                "sh",
                "-c",
                f"{tools} {command}",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
            assert process.stdout is not None
            try:
                while data := await process.stdout.read(CHUNK):
                    await self._write(local, data)
            finally:  # a device whose cable is cut hangs up on what its shell has started
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        elif service == "sync:":
            await self._sync(local)
        self.send(CLSE, local, remote)
        self.streams.pop(local, None)

    async def _sync(self, local: int) -> None:
        buffer, queue = b"", self.streams[local][1]

        async def need(count: int) -> bytes:
            nonlocal buffer
            while len(buffer) < count:
                data = await queue.get()
                if data is None:
                    raise EOFError
                buffer += data
            taken, buffer = buffer[:count], buffer[count:]
            return taken

        try:
            while True:
                request, size = struct.unpack("<4sI", await need(8))
                if request == b"QUIT":
                    return
                path = (await need(size)).decode()
                if request == b"STAT":
                    await self._write(local, self._stat(path))
                elif request == b"SEND":
                    await self._receive(local, path, need)
                elif request == b"RECV":
                    await self._give(local, path)
        except EOFError:
            pass

    def _stat(self, path: str) -> bytes:
        try:
            found = os.stat(self._here(path))
            return struct.pack("<4s3I", b"STAT", found.st_mode, found.st_size & 0xFFFFFFFF, int(found.st_mtime))
        except OSError:
            return struct.pack("<4s3I", b"STAT", 0, 0, 0)

    async def _receive(self, local: int, path: str, need) -> None:
        name, _, mode = path.rpartition(",")
        data = bytearray()
        while True:
            kind, size = struct.unpack("<4sI", await need(8))
            if kind != b"DATA":
                break
            data += await need(size)
        here = self._here(name)
        try:
            here.parent.mkdir(parents=True, exist_ok=True)
            here.write_bytes(data)
            here.chmod(int(mode) & 0o777)
        except OSError as error:
            await self._fail(local, error)
            return
        await self._write(local, struct.pack("<4sI", b"OKAY", 0))

    async def _fail(self, local: int, error: OSError) -> None:
        said = str(error).encode()
        await self._write(local, struct.pack("<4sI", b"FAIL", len(said)) + said)

    async def _give(self, local: int, path: str) -> None:
        try:
            data = self._here(path).read_bytes()
        except OSError as error:
            await self._fail(local, error)
            return
        for start in range(0, len(data), CHUNK):
            part = data[start : start + CHUNK]
            await self._write(local, struct.pack("<4sI", b"DATA", len(part)) + part)
        await self._write(local, struct.pack("<4sI", b"DONE", 0))

    def _here(self, path: str) -> Path:
        return self.root / path.lstrip("/")


class StandIn:
    """A stand-in that adb is connected to, on a port of its own. Without `android` it is a board, whose Linux has no
    properties."""

    def __init__(self, root: Path, *, android: bool = True) -> None:
        self.root, self.android, self.loop = root, android, asyncio.new_event_loop()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.serial = f"127.0.0.1:{self.port}"
        self.writers: list[asyncio.StreamWriter] = []
        self.connections: set[asyncio.Task[None]] = set()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def vanish(self) -> None:
        """Cuts the cable."""

        def close() -> None:
            self.server.close()
            for writer in self.writers:
                writer.transport.abort()

        self.loop.call_soon_threadsafe(close)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)

        async def serve() -> None:
            self.over = asyncio.Event()
            self.server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
            self.ready.set()
            await self.over.wait()
            await asyncio.gather(*self.connections, return_exceptions=True)

        self.loop.run_until_complete(serve())
        self.loop.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        task = asyncio.current_task()
        assert task is not None
        self.connections.add(task)
        task.add_done_callback(self.connections.discard)
        await _Connection(self.root, self.android, reader, writer).serve()

    def __enter__(self) -> StandIn:
        self.ready = threading.Event()
        self.thread.start()
        assert self.ready.wait(10)
        said = subprocess.run(["adb", "connect", self.serial], capture_output=True, text=True, check=True).stdout
        assert "connected" in said, said
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["adb", "disconnect", self.serial], capture_output=True, check=False)
        self.vanish()
        self.loop.call_soon_threadsafe(self.over.set)
        self.thread.join(5)
        assert not self.thread.is_alive()


@contextmanager
def own_server(port: int) -> Iterator[None]:
    """An adb server of this test run, not the user's."""
    before = os.environ.get("ANDROID_ADB_SERVER_PORT")
    os.environ["ANDROID_ADB_SERVER_PORT"] = str(port)
    try:
        yield
    finally:
        subprocess.run(["adb", "kill-server"], capture_output=True, check=False)
        if before is None:
            del os.environ["ANDROID_ADB_SERVER_PORT"]
        else:
            os.environ["ANDROID_ADB_SERVER_PORT"] = before
