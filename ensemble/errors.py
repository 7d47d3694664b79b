"""Everything that thera raises on purpose.

    TheraError            1   internal, or no better class
    ├── ConfigError       2   a command line or a config file that is not valid
    ├── DataError         3   images or labels that cannot be used
    ├── ArtifactError     4   a file of a run that is missing, damaged, newer or of another run
    ├── LockedError       5   another process works in the same folder
    ├── ResourceError     6   disk, memory, device or network
    │   └── OutOfDeviceMemory
    └── Stopped          75   a signal; what is finished is saved and the same command goes on

The number is the exit status of the command. Errors of status 2 and 3 are ValueErrors too: that is what Python code
expects of an argument that cannot be used.
"""

from __future__ import annotations


class TheraError(Exception):
    """An error whose message is one line: where it is, what was found, what to do.

    Parameters
    ----------
    where : str
        The file, option or object at fault.
    found : str
        What was found there, and what must hold instead.
    remedy : str, optional
        What the user can do.
    """

    status = 1

    def __init__(self, where: object, found: str, remedy: str = "") -> None:
        self.where, self.found, self.remedy = str(where), found, remedy
        super().__init__(f"{self.where}: {found}" + (f"; {remedy}" if remedy else ""))

    @property
    def line(self) -> str:
        """The line that the command prints for it."""
        return f"error: {self}"

    def __reduce__(self) -> tuple[type[TheraError], tuple[str, str, str]]:
        # Worker processes send errors as pickles, and the default would pass the whole message as `where`.
        return type(self), (self.where, self.found, self.remedy)


class ConfigError(TheraError, ValueError):
    """A command line, a config file or a parameter is not valid."""

    status = 2


class DataError(TheraError, ValueError):
    """Images or labels cannot be used."""

    status = 3


class ArtifactError(TheraError):
    """A file of a run is missing, damaged, newer than this version, or of another run."""

    status = 4


class LockedError(TheraError):
    """Another process works in the same folder."""

    status = 5


class ResourceError(TheraError):
    """Disk, memory, device or network do not suffice."""

    status = 6


class OutOfDeviceMemory(ResourceError):
    """The memory of a GPU does not suffice."""


class Stopped(TheraError):
    """A signal stopped the work; what is finished is saved, and the same command goes on."""

    status = 75

    @property
    def line(self) -> str:
        """The line that the command prints for it: a stop is no error."""
        return "; ".join(filter(None, (self.found, self.remedy)))


DEVICE_MEMORY_MESSAGES = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "ALLOC_FAILED",
    "MPS backend out of memory",
)
"""Parts of the messages by which torch, cuDNN (CUDNN_STATUS_ALLOC_FAILED) and cuBLAS say that a GPU's memory is
exhausted, where the error has no type of its own."""

CPU_MEMORY_MESSAGES = ("DefaultCPUAllocator: ", "std::bad_alloc", "Insufficient memory", "Cannot allocate memory")
"""Parts of the messages by which torch, C++ libraries, OpenCV and the system say that memory is exhausted."""

OUT_OF_DEVICE_MEMORY = "out of device memory"
"""How messages say it, whatever torch and the libraries of the GPU say."""


def out_of_memory(error: BaseException, where: str = "thera") -> ResourceError | None:
    """Return an error of Python, numpy, torch or OpenCV as a ResourceError if it says that memory is exhausted."""
    remedy = "close other programs, or use --jobs 1 or a smaller --batch-size"
    if is_out_of_device_memory(error):
        return OutOfDeviceMemory(where, OUT_OF_DEVICE_MEMORY, remedy)
    if isinstance(error, MemoryError) or any(part in str(error) for part in CPU_MEMORY_MESSAGES):
        return ResourceError(where, "out of memory", remedy)
    return None


def is_out_of_device_memory(error: BaseException) -> bool:
    """Return whether an error of torch or of a library of the GPU says that the memory of the GPU is exhausted."""
    named = type(error).__name__ == "OutOfMemoryError"  # torch's
    return named or any(part in str(error) for part in DEVICE_MEMORY_MESSAGES)


def first_line(error: BaseException, length: int = 100) -> str:
    """Return the first line of another library's error, for a message of one line; its type where it has no text."""
    return printable((str(error).strip() or type(error).__name__).splitlines()[0][:length])


def printable(text: object) -> str:
    """Return `text` with control characters and bytes that are not UTF-8 escaped, so that it is one harmless line."""
    text = str(text)
    if text.isprintable():  # no character of it is a surrogate: they count as not printable
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def some(ids: list[str]) -> str:
    """Return the first five ids as text, with an ellipsis where there are more."""
    return ", ".join(map(printable, ids[:5])) + (" …" if ids[5:] else "")
