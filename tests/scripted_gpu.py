"""A clock and a GPU that do what a test says, for all that measures."""


class Clock:
    """A clock that moves only when a call says so."""

    def __init__(self):
        self.now = 0.0
        self.log = []

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds

    def work(self, name, seconds):
        def call():
            self.log.append(name)
            self.now += seconds

        return call


class FakeGpu:
    """A device with a queue: work starts once it is queued and the device is free."""

    FLUSH, L2_MISS = 100e-6, 5e-6

    def __init__(self, clock):
        self.clock, self.free_at, self.cold = clock, 0.0, False

    def queue(self, seconds):
        self.free_at = max(self.free_at, self.clock()) + seconds

    def flush(self):
        self.queue(self.FLUSH)
        self.cold = True

    def idle(self, seconds):
        self.queue(seconds)

    def synchronize(self):
        self.clock.now = max(self.clock.now, self.free_at)

    def event(self):
        gpu = self

        class Event:
            def record(self):
                gpu.queue(0.0)
                self.at = gpu.free_at

            def query(self):
                return gpu.clock() >= self.at

            def elapsed_time(self, end):
                return (end.at - self.at) * 1e3

        return Event()

    def kernel(self, host, device):
        """A call that keeps the host busy, then queues device work, which takes longer with a cold L2."""

        def call():
            self.clock.now += host
            self.queue(device + self.L2_MISS * self.cold)
            self.cold = False

        return call
