"""What the command line owes to terminals, signals and those who report."""

import contextlib
import datetime
import dis
import io
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback

# Of a shell that ends (Ctrl-C, a terminal that closes) and of all else.
_SIGNALS = ("SIGINT", "SIGHUP", "SIGTERM")
_PAUSE = 30.0  # Seconds between lines of progress,
_BLINK = 0.1  # and between pictures of a bar, at least.
_BAR = 20  # Characters.


class Output:
    """A stream for print: its troubles are noted, and the work goes on."""

    def __init__(self, stream):
        self._stream, self.error = stream or io.StringIO(), None

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        shown = text.encode(encoding, "backslashreplace").decode(encoding)
        self._noting(lambda: self._stream.write(shown))
        if "\n" in text:  # Who follows a log sees each line when it is told.
            self.flush()
        return len(text)

    def flush(self):
        self._noting(self._stream.flush)

    def _noting(self, act):
        try:
            act()
        except (OSError, ValueError) as error:  # Of a closed one.
            self.error = self.error or error


def progress(unit, report=print):
    """A function that shows how far work is, and how much time is left.

    It takes what is done and all there is, or None where that is not known;
    perhaps what else there is to say; and, as `ends`, whether a line ends here.
    On a terminal it draws a bar; elsewhere `report` is told in words, every 30
    seconds. What is done begins anew with each piece of work.
    """
    show = _drawn() if is_terminal() else _told(report)
    begun = last = is_over = None

    def tell(done, total, more="", ends=False):
        nonlocal begun, last, is_over
        now = time.monotonic()
        is_new = last is None or done < last or is_over
        if is_new:
            begun = now, done
        last, is_over = done, done == total
        text = f"{done:,}{f' of {total:,}' if total else ''} {unit}s"
        text += _left(total, done, now, *begun) + f"; {more}" * bool(more)
        show(text, done / total if total else None, now, is_new, ends)

    return tell


def _left(total, done, now, start, first):
    """The time that is left, in words; nothing where nobody knows."""
    if not total or done == first or done == total:
        return ""
    seconds = (now - start) * (total - done) / (done - first)
    return f", {datetime.timedelta(seconds=round(seconds))} left"


def _drawn():
    drawn = 0.0

    def show(text, share, now, is_new, ends):
        nonlocal drawn
        is_done = ends or share == 1
        if not is_new and not is_done and now - drawn < _BLINK:
            return
        bar = ""
        if share is not None:
            bar = f"[{'=' * int(share * _BAR):{_BAR}}] "
        width = shutil.get_terminal_size().columns - 1
        line = f"\r{(bar + text)[:width]}\x1b[K"
        sys.stdout.write(line + "\n" * is_done)
        sys.stdout.flush()
        drawn = now

    return show


def _told(report):
    told = 0.0

    def show(text, share, now, is_new, ends):
        nonlocal told
        if is_new:
            told = now
        if now - told >= _PAUSE:
            report(f"{text}.")
            told = now

    return show


def is_terminal():
    """Whether somebody sees the output at once, and lines can be redrawn."""
    return sys.stdout is not None and sys.stdout.isatty()


@contextlib.contextmanager
def interruptible():
    """Context in which all requests to end come as Ctrl-C does.

    Yields a list of the signals that came. Those that are ignored, as nohup
    asks for, stay so.
    """
    came = []

    def stop(number, frame):
        came.append(number)
        raise KeyboardInterrupt

    stop.came = came
    with _handled_by(stop):
        yield came


@contextlib.contextmanager
def deferred():
    """Context in which a request to end is noted, and acted on by others.

    Yields a list of the signals that came. The next one ends the process at
    once. Afterwards `interruptible` knows of them; where nobody does, all but
    Ctrl-C end the process.
    """
    came = []

    def note(number, frame):
        came.append(number)
        for each in earlier:
            signal.signal(each, signal.SIG_DFL)
        with contextlib.suppress(OSError):  # Who prints may be interrupted.
            os.write(2, b"\nEnding after this step; once more ends at once.\n")

    with _handled_by(note) as earlier:
        yield came
    for number in came:
        if hasattr(earlier[number], "came"):
            earlier[number].came.append(number)
        elif number != signal.SIGINT:
            signal.raise_signal(number)


@contextlib.contextmanager
def _handled_by(handler):
    """Context with another handler of the signals, where one of ours may be.

    Yields the handlers from before, by number.
    """
    earlier = {}
    if threading.current_thread() is threading.main_thread():
        defaults = (signal.SIG_DFL, signal.default_int_handler)
        numbers = [getattr(signal, x) for x in _SIGNALS if hasattr(signal, x)]
        for number in numbers:
            before = signal.getsignal(number)
            if before in defaults or hasattr(before, "came"):
                earlier[number] = signal.signal(number, handler)
    try:
        yield earlier
    finally:
        for number, before in earlier.items():
            signal.signal(number, before)


def import_quietly():
    """Imports TensorFlow without what it says before it can be told not to."""
    with tempfile.TemporaryFile() as said:
        try:
            stderr = os.dup(2)
        except OSError:  # There is none.
            return
        os.dup2(said.fileno(), 2)
        try:
            import keras_simclr  # noqa: F401
        except Exception:
            said.seek(0)
            os.write(stderr, said.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def is_refusal(error):
    """Whether a check raised an error on purpose, or the system did.

    On purpose means by a `raise` of our own; what Python or a library finds
    wrong with our code is a fault, whatever its type.
    """
    if isinstance(error, (OSError, MemoryError, ImportError)):
        return True
    *_, last = _frames(error.__traceback__)
    name = last.tb_frame.f_globals.get("__name__", "")
    code = last.tb_frame.f_code.co_code
    return name.startswith("keras_simclr") and (
        dis.opname[code[last.tb_lasti]] == "RAISE_VARARGS"
    )


def _frames(trace):
    while trace is not None:
        yield trace
        trace = trace.tb_next


def report_fault(error, *lines):
    """Keeps the traceback of a fault of the program; returns where, in words.

    `lines`: what else helps to find it.
    """
    lines = [*lines, *traceback.format_exception(error)]
    try:
        handle, path = tempfile.mkstemp(".log", "keras-simclr-", text=True)
        os.close(handle)
        pathlib.Path(path).write_text(
            "\n".join(lines), "utf-8", "backslashreplace"
        )
    except OSError:
        traceback.print_exception(error)
        return "the lines above"
    return path
