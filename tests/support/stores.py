"""Stores of objects for tests: one in the memory of this process, and one that speaks S3 on this machine."""

import threading
from contextlib import contextmanager

import fsspec


@contextmanager
def empty_memory():
    """fsspec's store in memory, empty before and after."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


class Gate:
    """Holds requests back: of those whose path has `part`, the first `free` pass, the others when it is opened.

    `arrived` is set when `free` + `held` of them have come.
    """

    def __init__(self, part, free, held):
        self._part, self._free, self._held = part, free, held
        self._lock, self._count = threading.Lock(), 0
        self.arrived, self.opened = threading.Event(), threading.Event()

    def pass_through(self, method, path):
        if method != "GET" or self._part not in path:
            return
        with self._lock:
            self._count += 1
            waits = self._count > self._free
            if self._count >= self._free + self._held:
                self.arrived.set()
        if waits:
            self.opened.wait(60)


class S3Server:
    """A server of moto on the loopback; `gate` may be set, `written` lists the paths that were sent to it."""

    def __init__(self):
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Silent(WSGIRequestHandler):
            def log(self, *_):
                pass

        application = DomainDispatcherApplication(create_backend_app)

        def watched(environ, start_response):
            if environ["REQUEST_METHOD"] == "PUT":
                self.written.append(environ["PATH_INFO"])
            if self.gate:
                self.gate.pass_through(environ["REQUEST_METHOD"], environ["PATH_INFO"])
            return application(environ, start_response)

        self.gate, self.written = None, []
        self._server = make_server("127.0.0.1", 0, watched, threaded=True, request_handler=Silent)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        if self.gate:
            self.gate.opened.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def environment(self):
        """Variables by which every S3 library finds the server."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.server_port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
