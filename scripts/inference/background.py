# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Post-processing and saving of one case while the network works on the next."""

import logging
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from ignite.engine import Events
from monai.engines.workflow import Workflow
from monai.transforms import Compose
from scripts.inference.failures import CASE_ERRORS, CaseFailures, case_of

logger = logging.getLogger(__name__)


class BackgroundCompose(Compose):
    """An evaluator's post-processing that runs in a thread of its own while the evaluator goes on with the next case.

    There is only one thread, since MONAI's ``Invertd`` switches settings of the preprocessing off and on while it runs.
    For the same reason the loader must preprocess in other processes. If it does not, or if this object is not attached
    to the evaluator as a handler too, the transforms run in the foreground.

    On a GPU the thread has a stream of its own, so that it does not queue behind the windows of the next case.

    No result is returned, so no metric can read it. ``failures`` notes a case that fails. An error that ends the run is
    raised at the next case or at the end, and no later case is saved.

    Args:
        transforms: as in ``Compose``.
        failures: the failed cases of the run.
        waiting: number of cases that may wait for the thread or be in it, which bounds memory. With more, the evaluator
            waits.
    """

    def __init__(self, transforms: Any, failures: CaseFailures, waiting: int = 2) -> None:
        super().__init__(transforms)
        self.failures = failures
        self.waiting = waiting
        self.executor: ThreadPoolExecutor | None = None
        self.stream: torch.cuda.Stream | None = None

    def attach(self, engine: Workflow) -> None:
        """Start, finish and stop together with ``engine``."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.COMPLETED, self.finish)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.stop)

    def start(self, engine: Workflow) -> None:
        """Start the thread."""
        self.slots, self.failed = threading.Semaphore(self.waiting), threading.Event()
        self.cases: deque[Future[None]] = deque()
        if getattr(engine.data_loader, "num_workers", 0) < 1:
            logger.warning("--num_workers 0: cases are done one after another; an overlap needs 1 worker or more.")
            return
        self.executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="postprocessing")
        self.failures.in_background = True

    def __call__(
        self, input_: Any, start: int = 0, end: int | None = None, threading: bool = False, lazy: bool | None = None
    ) -> Any:
        """Hand a case over to the thread. The transforms save its results."""
        if self.executor is None:
            return super().__call__(input_, start, end, threading, lazy)
        self.raise_error()
        self.slots.acquire()
        # The thread's stream waits for what the network's stream has been given so far.
        ready = torch.cuda.current_stream().record_event() if torch.cuda.is_initialized() else None
        self.cases.append(self.executor.submit(self.process, dict(input_), ready))
        return {}

    def process(self, case: dict[str, Any], ready: torch.cuda.Event | None = None) -> None:
        """Run the transforms over one case, in the thread, once a GPU has come to the event ``ready``."""
        try:
            if self.failed.is_set():
                return
            memory_was_short = False
            try:
                with self.on_own_stream(case, ready):
                    done = super().__call__(case)
                self.failures.end(case_of(case), None, done if isinstance(done, dict) else {})
            except CASE_ERRORS as error:
                memory_was_short = self.failures.add(case_of(case), error)
            if memory_was_short:
                case.clear()
                torch.cuda.empty_cache()
        except BaseException:
            self.failed.set()
            raise
        finally:
            self.slots.release()

    @contextmanager
    def on_own_stream(self, case: Mapping[str, Any], ready: torch.cuda.Event | None) -> Iterator[None]:
        """Give the GPU of ``case``, if it is on one, what follows on the thread's stream, and wait for its end."""
        devices = [value.device for value in case.values() if isinstance(value, torch.Tensor) and value.is_cuda]
        if ready is None or not devices:
            yield
            return
        # A new thread uses the first GPU until it is told another.
        torch.cuda.set_device(devices[0])
        self.stream = self.stream or torch.cuda.Stream()
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(ready)
            try:
                yield
            finally:
                # Only then may the network's stream have the memory of the case.
                self.stream.synchronize()

    def raise_error(self, wait: bool = False) -> None:
        """Raise the error of the first case that failed. With ``wait``, wait for cases that are not done yet."""
        while self.cases and (wait or self.cases[0].done()):
            self.cases.popleft().result()

    def finish(self, engine: Workflow) -> None:
        """Wait for the last cases and end the thread."""
        self.raise_error(wait=True)
        self.stop(engine)

    def stop(self, engine: Workflow, error: BaseException | None = None) -> None:
        """End the thread after its present case."""
        if self.executor is not None:
            self.executor.shutdown(cancel_futures=True)
            self.executor = None
            self.failures.in_background = False
        # If an engine has a handler for errors, ignite does not raise them itself.
        if error is not None:
            raise error
