"""What the command line owes to terminals, signals and those who report."""

import contextlib
import dis
import io
import os
import pathlib
import signal
import sys
import tempfile
import threading
import traceback

# Of a shell that ends (Ctrl-C, a terminal that closes) and of all else.
_SIGNALS = ("SIGINT", "SIGHUP", "SIGTERM")


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
        if text.endswith("\n"):  # Who follows a log sees it at once.
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
    """A function of what is done and of all there is, that shows how far it is.

    A bar on a terminal; elsewhere `report` is told each tenth, in words.
    """
    if is_terminal():
        import keras

        bar = keras.utils.Progbar(None, unit_name=unit)

        def move(done, total):
            bar.target = total
            bar.update(done)

        return move
    told = 0

    def tell(done, total):
        nonlocal told
        tenths = 10 * done // total
        if tenths > told:
            report(f"{done:,} of {total:,} {unit}s.")
            told = tenths

    return tell


def is_terminal():
    """Whether somebody sees the output at once, and lines can be redrawn."""
    return sys.stdout is not None and sys.stdout.isatty()


@contextlib.contextmanager
def interruptible():
    """Context in which all requests to end come as Ctrl-C does.

    Yields a list of the signals that came. Those that are ignored, as nohup
    asks for, stay so.
    """
    came, earlier = [], {}

    def stop(number, frame):
        came.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        defaults = (signal.SIG_DFL, signal.default_int_handler)
        numbers = [getattr(signal, x) for x in _SIGNALS if hasattr(signal, x)]
        for number in numbers:
            if signal.getsignal(number) in defaults:
                earlier[number] = signal.signal(number, stop)
    try:
        yield came
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


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
