"""Each unusable image is said and listed once, whichever process finds it."""

from pathlib import Path

from remask.runs.bad_images import BadImages


def test_the_process_that_ends_a_run_repeats_nothing(tmp_path: Path) -> None:
    """Both processes found b; the main one said it, and the other, which found too many, says the rest."""
    said = list[str]()
    main, other = BadImages(tmp_path, said.append), BadImages(tmp_path, said.append, writes=False)
    for process, names in ((main, "ab"), (other, "bc")):
        for name in names:
            process(f"{name}.png: no picture")
    other.write({"b.png": "no picture", "c.png": "no picture"})
    assert said == [f"skipped {name}.png: no picture" for name in "abc"]
    assert (tmp_path / "bad_images.txt").read_text().split("\n") == [f"{name}.png: no picture" for name in "abc"] + [""]
