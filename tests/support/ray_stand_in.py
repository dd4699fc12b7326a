"""A stand-in for the module `ray`: workers are objects of this process, and die when a test says so."""

from collections import deque


class RayError(Exception):
    """As `ray.exceptions.RayError`."""


class ObjectLostError(RayError):
    """As `ray.exceptions.ObjectLostError`: the answer is gone, and the worker is not."""


class RayTaskError(RayError):
    """As `ray.exceptions.RayTaskError`."""

    def __init__(self, cause):
        super().__init__(str(cause))
        self.cause = cause


class Promise:
    """The answer of a method that is called when somebody waits for it."""

    def __init__(self, worker, name, arguments):
        self.worker, self.name, self.arguments = worker, name, arguments

    def value(self):
        try:
            if self.worker.dead:
                raise RayError("The actor died unexpectedly before finishing this task.\n\tclass_name: Worker")
            return self.worker.called(self.name, self.arguments)
        except RayError as error:
            self.worker.dead |= not isinstance(error, ObjectLostError)
            raise
        except Exception as error:
            raise RayTaskError(error) from error


class Handle:
    """An actor: `handle.name.remote(...)` promises what the object's method gives."""

    def __init__(self, ray, made):
        self._ray, self._made, self.dead = ray, made, False

    def __getattr__(self, name):
        class Method:
            @staticmethod
            def remote(*arguments):
                return Promise(self, name, arguments)

        return Method()

    def called(self, name, arguments):
        return self._ray.call(self, self._made, name, arguments)


class RayStandIn:
    """The functions of `ray` that the scheduler calls.

    `call(handle, made, name, arguments)` answers a method of the actor `made`; it raises a `RayError` if that died.
    `room` is the number of actors that the cluster holds; others wait.
    """

    class exceptions:  # noqa: N801 - as in Ray
        RayError, RayTaskError = RayError, RayTaskError

    def __init__(self, call, room=2):
        self.call, self.room = call, room
        self.alive, self.asked, self.waits = [], [], 0
        self.turns = deque()

    def put(self, value):
        return value

    def remote(self, **options):
        self.asked.append(options)
        outer = self

        class Remote:
            def __init__(self, kind):
                self._kind = kind

            def remote(self, *arguments):
                handle = Handle(outer, self._kind(*arguments))
                outer.alive.append(handle)
                return handle

        return Remote

    def wait(self, promises, num_returns, timeout):
        """The promise of the actor whose turn it is, among those that the cluster holds."""
        self.waits += 1
        self.alive = [handle for handle in self.alive if not handle.dead]
        held = self.alive[: self.room]
        ready = [promise for promise in promises if promise.worker.dead or promise.worker in held]
        if not ready:
            return [], promises
        order = [handle for handle in self.turns if any(promise.worker is handle for promise in ready)]
        chosen = next((one for one in ready if order and one.worker is order[0]), ready[0])
        return [chosen], [promise for promise in promises if promise is not chosen]

    def get(self, promise):
        return promise.value()

    def kill(self, handle):
        handle.dead = True
