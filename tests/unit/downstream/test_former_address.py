"""downstream.export at its former address."""


def test_scripts_of_earlier_exports_find_their_loader() -> None:
    """The load_example.py on users' disks imports it from where it was."""
    from remask.downstream.export import load_export
    from remask.tasks import export as former

    assert former.load_export is load_export
