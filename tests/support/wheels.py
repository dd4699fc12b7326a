"""Wheels of distributions that are installed here, for pip where there is no network."""

import importlib.metadata
import re
import zipfile
from fnmatch import fnmatch
from pathlib import PurePosixPath

from packaging.requirements import Requirement
from packaging.tags import sys_tags

NOT_IN_WHEELS = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}
"""Files of a .dist-info folder that pip writes itself."""


def file_name(name):
    return re.sub(r"[-_.]+", "_", name)


def repack(distribution, folder, left_out=()):
    """Write an installed distribution as a wheel, uncompressed, and return its path.

    `left_out` are patterns of files that the wheel does not hold; ["*"] leaves its metadata alone.
    """
    tags = set(re.findall(r"^Tag: (\S+)$", distribution.read_text("WHEEL"), re.M))
    tag = next(str(one) for one in sys_tags() if str(one) in tags)
    path = folder / f"{file_name(distribution.metadata['Name'])}-{distribution.version}-{tag}.whl"
    record = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in distribution.files:
            is_metadata = file.parts[0].endswith(".dist-info")
            if file.parts[0] == ".." or file.suffix == ".pyc" or (is_metadata and file.name in NOT_IN_WHEELS):
                continue
            if not is_metadata and any(fnmatch(str(file), pattern) for pattern in left_out):
                continue
            archive.write(file.locate(), str(file))
            record.append(f"{file},,\n")
        info = PurePosixPath(next(file for file in distribution.files if file.name == "METADATA")).parent
        archive.writestr(f"{info}/RECORD", "".join(record) + f"{info}/RECORD,,\n")
    return path


def empty_wheel(name, version, folder):
    """Write a wheel without files, of a package that is not installed here."""
    info = f"{file_name(name)}-{version}.dist-info"
    path = folder / f"{file_name(name)}-{version}-py3-none-any.whl"
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "".join(f"{info}/{file},,\n" for file in ("METADATA", "WHEEL", "RECORD")),
    }
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(f"{info}/{file}", text)
    return path


def needed_by(requirements):
    """Return {name: distribution, or None if it is not installed here} of requirements and all that they need."""
    found, waiting = {}, list(applying(requirements))
    while waiting:
        wanted = waiting.pop()
        name = wanted.name.lower().replace("_", "-")
        if name in found and not wanted.extras:
            continue
        try:
            found[name] = importlib.metadata.distribution(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
        else:
            waiting += applying(found[name].requires or (), wanted.extras)
    return found


def applying(requirements, extras=()):
    """Yield those of these requirements that count on this system, and with one of the extras or without one."""
    for one in map(Requirement, requirements):
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras or {""}):
            yield one
