from rewarden.report import html


def test_numbers() -> None:
    assert [html.number(value) for value in (None, float("nan"), 1234, 0.12345, True)] == [
        "–",
        "–",
        "1,234",
        "0.123",
        "True",
    ]
    assert html.number(0.5, 1) == "0.5"


def test_intervals() -> None:
    found = {"value": 0.6, "low": 0.55, "high": 0.65}
    words = ("over", "under", "at")
    assert "[0.550, 0.650]" in html.interval(found)
    assert "▲ over" in html.interval(found, 0.5, words)
    assert "▼ under" in html.interval(found, 0.7, words)
    assert "○ at" in html.interval(found, 0.6, words)
    assert html.interval(found, mark=" ★").startswith("<b>0.600 ★</b>")
    assert html.interval(None) == html.interval({"value": None}) == "–"


def test_names_become_ids() -> None:
    names = ["rm-bench", "rm_bench", "a b", "<x>"]
    slugs = [html.slug(name) for name in names]
    assert len(set(slugs)) == 4
    assert all(each.isalnum() or each == "-" for slug in slugs for each in slug)


def test_fields_of_sets() -> None:
    models = {"a": {"sets": {"x": {"nll": 0.5}}}, "b": {"sets": {"y": {}, "x": {}}}}
    assert html.set_names(models) == ["x", "y"]
    assert html.of_set("nll")(models["a"], "x") == 0.5
    assert html.of_set("nll")(models["a"], "y") is None


def test_a_table_has_a_block_per_set() -> None:
    models = {"a": {"sets": {"x": {"nll": 0.5}}}, "b": {"sets": {"x": {"nll": 0.25}, "y": {"nll": 1.5}}}}
    text = html.by_set("Title", ["model", "nll"], models, lambda found: [html.number(found["nll"])])
    assert text.count("<tbody>") == 2
    assert [text.index(each) for each in ("0.500", "0.250", "1.500")] == sorted(
        text.index(each) for each in ("0.500", "0.250", "1.500")
    )


def test_settings_as_typed() -> None:
    assert [html.as_typed(value) for value in (1e-4, None, [1, 2], "x<")] == ["0.0001", "–", "[1, 2]", "x&lt;"]
