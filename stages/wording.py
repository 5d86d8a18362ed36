"""How messages say numbers of things."""


def counted(number: int, thing: str, things: str = "") -> str:
    """`1 file`, `2,000 files`; other plurals are said: `counted(2, "copy", "copies")`."""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"
