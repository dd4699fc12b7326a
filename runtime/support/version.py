"""The version of this library, as it is installed."""

DISTRIBUTION = "unet-deploy"


def installed_version() -> str:
    """Return the version of this library; "(not installed)" where it runs from a folder alone."""
    from importlib.metadata import PackageNotFoundError, version  # takes 30 ms, which --help can do without

    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "(not installed)"
