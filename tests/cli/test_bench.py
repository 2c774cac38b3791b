"""``shardstream bench``: figures that make sense."""

import json


def test_bench_measures_batches_and_sequential_reading(run, write_dataset) -> None:
    """--json gives sizes, rates and times, which agree with one another."""
    dataset = write_dataset(range(1000))

    report = json.loads(
        run("bench", dataset.uri, "--batch-size", 4, "--context-length", 16, "--seconds", 0.05, "--json").stdout
    )

    assert report.pop("uri") == dataset.uri
    assert (report["num_bytes"], report["batch_size"], report["context_length"]) == (2000, 4, 16)
    assert report["batches"] == "int64 tensors"
    assert report["tokens_per_second"] == report["windows_per_second"] * 16
    assert 0 < report["batch_seconds_p50"] <= report["batch_seconds_p95"]
    assert report["num_batches"] >= 1
    assert min(report[f"{name}_seconds"] for name in ("open", "first_window")) > 0
    assert report["sequential_mb_per_second"] > 0


def test_bench_for_a_person_says_what_was_measured(run, write_dataset) -> None:
    """The table ends by saying what was measured, and that the page cache counts; no time at all is one batch."""
    dataset = write_dataset(range(1000))

    text = run("bench", dataset.uri, "--context-length", 16, "--seconds", 0).stdout

    assert "batches measured      1 in " in text
    assert text.endswith("\nMeasured in one thread, on the CPU. What the page cache holds counts as read.\n")


def test_too_few_tokens_are_wrong_use(run, write_dataset) -> None:
    """A context that the dataset cannot fill is named."""
    dataset = write_dataset(range(16))

    assert run("bench", dataset.uri, "--context-length", 16, status=2).stderr.startswith(
        "Error: 16 tokens are too few for --context-length 16: a window takes one more\n"
    )
