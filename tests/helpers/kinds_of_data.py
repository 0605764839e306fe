"""The same images in all that `--data` takes."""

import csv
import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq

from helpers.pictures import encoded, picture, write

CLASSES = "cat", "dog", "owl"


def numbers_of(name):
    """Seed, width and height of the picture in a file."""
    number = int(name[4:6])
    return number, 16 + number % 3, 12


FILES = {
    name: encoded(picture(*numbers_of(name)), "PNG")
    for name in (f"{CLASSES[n % 3]}/{n:02}.png" for n in range(12))
}


def class_of(name):
    return CLASSES.index(name.split("/")[0])


def key(name):
    """The file's own name, which all sources keep."""
    return name.rpartition("/")[2]


def write_folder(directory, files):
    write(directory / "folder", files)
    return str(directory / "folder")


def write_list(directory, files):
    write(directory / "images", files)
    with (directory / "list.csv").open("w", newline="") as file:
        rows = [(f"images/{name}", name.split("/")[0]) for name in files]
        csv.writer(file).writerows([("path", "label"), *rows])
    return str(directory / "list.csv")


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, contents in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(contents)
            archive.addfile(member, io.BytesIO(contents))
    return path


def write_tars(directory, files):
    names = list(files)
    for number, part in enumerate((names[:5], names[5:])):
        members = {}
        for name in part:
            members[key(name)] = files[name]
            label = name.split("/")[0].encode()
            members[key(name).partition(".")[0] + ".cls"] = label
        write_tar(directory / f"shards/train-{number:03}.tar", members)
    return f"tar:{directory}/shards/train-{{000..001}}.tar"


def table_of(files, **columns):
    """Hugging Face's layout, with names of the classes."""
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": [*CLASSES]},
    }
    notes = json.dumps({"info": {"features": features}})
    columns = {
        "image": [
            {"bytes": contents, "path": key(name)}
            for name, contents in files.items()
        ],
        "label": [class_of(name) for name in files],
        **columns,
    }
    table = pa.table({k: v for k, v in columns.items() if v is not None})
    return table.replace_schema_metadata({"huggingface": notes})


def write_parquet(directory, files):
    (directory / "data").mkdir(parents=True, exist_ok=True)
    names = list(files)
    for number, part in enumerate((names[:5], names[5:])):
        table = table_of({name: files[name] for name in part})
        path = directory / f"data/train-{number}.parquet"
        pq.write_table(table, path, row_group_size=2)
    return f"parquet:{directory}/data/train-*.parquet"


SOURCES = {
    "folder": write_folder,
    "list": write_list,
    "tar": write_tars,
    "parquet": write_parquet,
}
