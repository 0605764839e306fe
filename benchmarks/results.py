"""Results: tables of them, where they were made, and where they are kept."""

import argparse
import datetime
import json
import os
import pathlib
import platform
import sys

_TABLES = pathlib.Path(__file__).parent / "results.json"


def report(text):
    """Prints a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def markdown(titles, rows):
    """A Markdown table."""
    rows = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


# Tables, in results.json and results.md.


def keep_table(title, table, **details):
    """Puts a table into results.json and results.md, over an older one.

    Args:
        title: Heading of the table.
        table: The table in Markdown.
        **details: What else results.json shall hold.
    """
    tables = json.loads(_TABLES.read_text()) if _TABLES.exists() else {}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    tables[title] = {
        "date": _today(),
        "machine": {
            **processor(),
            "memory_gib": round(memory / 2**30, 1),
            "system": platform.system(),
        },
        **details,
        "table": table,
    }
    _TABLES.write_text(json.dumps(tables, indent=1) + "\n")
    text = "\n\n".join(
        f"### {title}\n\n{kept['table']}\n\n{kept['machine']['cpu']}, "
        f"{kept['machine']['cores']} cores, {kept['date']}"
        for title, kept in tables.items()
    )
    _TABLES.with_suffix(".md").write_text(text + "\n")
    report(f"\n### {title}\n\n{table}\n")


# Lists of results in files of their own, each made once.


def add_results_flag(parser, directory):
    """Adds `--results`, by default that directory, to an `ArgumentParser`."""
    parser.add_argument(
        "--results",
        type=pathlib.Path,
        default=directory,
        help="Directory of results. What is there is not run again: an empty "
        "one has everything run anew.",
    )


def draws_parser(text, directory, flag, what):
    """An `ArgumentParser` of a claim from several draws.

    Args:
        text: What it is about.
        directory: Where results are stored by default.
        flag: Name of the flag of its data.
        what: What these are, for the help.

    Returns:
        `argparse.ArgumentParser` of that flag, `--draws` and `--results`.
    """
    parser = argparse.ArgumentParser(description=text)
    add_results_flag(parser, directory)
    parser.add_argument(f"--{flag}", required=True, help=what)
    parser.add_argument("--draws", type=int, default=5)
    return parser


def stored(path):
    """The list of dictionaries in a file; empty if there is no file."""
    return json.loads(path.read_text()) if path.exists() else []


def store(path, results):
    """Stores a list of dictionaries, a line each, in place of what there is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    lines = ",\n".join(json.dumps(result) for result in results)
    part.write_text(f"[\n{lines}\n]\n")
    part.replace(path)


def once(path, key, make):
    """A result that is stored, or is made and stored; it is printed.

    Args:
        path: File of results.
        key: Dictionary that tells the result from all others.
        make: Function without arguments that returns what else it holds.

    Returns:
        Dictionary that holds `key` and says where and when it was made.
    """
    for result in stored(path):
        if key.items() <= result.items():
            break
    else:
        result = {**key, **make(), **circumstances()}
        # Another process may have stored some meanwhile.
        store(path, [*stored(path), result])
    report(json.dumps(result))
    return result


def circumstances():
    """When and where a result is made, and by which versions."""
    from keras_simclr import cards

    return {"date": _today(), **processor(), "versions": cards.versions()}


def _today():
    return datetime.date.today().isoformat()


def processor():
    """The processor of this machine, and how many cores are ours."""
    info = pathlib.Path("/proc/cpuinfo").read_text()
    return {
        "cpu": info.split("model name")[1].split("\n")[0].strip("\t :"),
        "cores": len(os.sched_getaffinity(0)),
    }
