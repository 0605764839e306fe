"""Cells of CSV files that a spreadsheet shows as they are, not computed."""

# What begins a formula, also in wide letters. Tabs and line ends are left out
# before spreadsheets look.
_SIGNS = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")


def cell(value):
    """A text that would be a formula with a `'` in front; else the value.

    Texts of numbers are no formulas. `text` takes the apostrophe off.

    >>> [cell(x) for x in ("=1+1", "@sum", "-0.5", -0.5, "a=b", "'=x")]
    ["'=1+1", "'@sum", '-0.5', -0.5, 'a=b', "''=x"]
    """
    is_formula = isinstance(value, str) and _is_formula(value.lstrip("'"))
    return f"'{value}" if is_formula else value


def text(value):
    """The text that `cell` made a cell of.

    >>> [text(x) for x in ("'=1+1", "''=x", "'a'")]
    ['=1+1', "'=x", "'a'"]
    """
    is_made = value[:1] == "'" and _is_formula(value.lstrip("'"))
    return value[1:] if is_made else value


def path_cell(path):
    """A path that no spreadsheet takes for a formula: of the same file.

    >>> path_cell("=1+1.png"), path_cell("a.png")
    ('./=1+1.png', 'a.png')
    """
    return f"./{path}" if path.startswith(_SIGNS) else path


def _is_formula(value):
    if not value.startswith(_SIGNS):
        return False
    try:
        float(value)
    except ValueError:
        return True
    return False
