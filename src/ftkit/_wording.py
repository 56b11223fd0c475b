"""Write numbers, sizes, lists and foreign text for people to read."""

from __future__ import annotations

from collections.abc import Sequence


def plural(count: int, noun: str, many: str | None = None) -> str:
    """Write a count with its noun.

    Example:
        >>> from ftkit._wording import plural
        >>> plural(1, "file"), plural(12_000, "file"), plural(2, "copy", "copies")
        ('1 file', '12,000 files', '2 copies')
    """
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def some(items: Sequence[object], most: int, separator: str = ", ") -> str:
    """Write the first few items of a list, safe for a terminal, and how many more there are.

    Example:
        >>> from ftkit._wording import some
        >>> some(["ant", "bee", "wasp", "fly"], 2)
        'ant, bee and 2 more'
    """
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return separator.join(map(shown, items[:most])) + more


def shown(text: object, most: int = 200) -> str:
    r"""Write text from a file or another untrusted source so that it is safe to print on a terminal.

    Whatever would move the cursor, clear the screen, reverse the line or can't be printed is escaped; the middle of
    overlong text is left out.

    Example:
        >>> from ftkit._wording import shown
        >>> print(shown("개미\x1b[2J\u202egpj.exe"))
        개미\x1b[2J\u202egpj.exe
        >>> shown("a" * 50, most=20)
        'aaaaaaaaaa...aaaaaaa'
    """
    words = str(text)
    if len(words) > most:
        words = f"{words[: most // 2]}...{words[most // 2 + 3 - most :]}"
    return "".join(map(_escaped, words))


def harmless(text: str) -> str:
    r"""Write a text of several lines so that it is safe to print on a terminal, whatever it quotes.

    Example:
        >>> from ftkit._wording import harmless
        >>> print(harmless("two lines,\nand no \x1b[2J"))
        two lines,
        and no \x1b[2J
    """
    return text if text.isprintable() else "\n".join("".join(map(_escaped, line)) for line in text.split("\n"))


def cause(error: BaseException) -> str:
    """Write what an exception says, behind its kind: many say nothing, or not enough without it.

    Example:
        >>> from ftkit._wording import cause
        >>> cause(KeyError("weight")), cause(AssertionError())
        ("KeyError: 'weight'", 'AssertionError')
    """
    said = str(error).strip().rstrip(".")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def in_units(count: float) -> str:
    """Write a number with three significant digits and a metric prefix.

    Example:
        >>> from ftkit._wording import in_units
        >>> in_units(950), in_units(25_557_032)
        ('950', '25.6 M')
    """
    for unit in ("", " K", " M", " G", " T"):
        if abs(count) < 999.5:
            return f"{count:.3g}{unit}" if unit else f"{count:.0f}"
        count /= 1000
    return f"{count:.4g} P"


def in_counts(count: float) -> str:
    """Write a count: a thousand million is a billion.

    Example:
        >>> from ftkit._wording import in_counts
        >>> in_counts(6_738_415_616)
        '6.74 B'
    """
    return in_units(count).replace("G", "B")


def in_bytes(count: float) -> str:
    """Write a size with three significant digits and a binary prefix, as torch and GPU tools do.

    Example:
        >>> from ftkit._wording import in_bytes
        >>> in_bytes(85_519_872)
        '81.6 MiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 999.5:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1024
    return f"{count:.4g} TiB"
