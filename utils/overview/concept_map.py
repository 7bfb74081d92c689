"""The corrected concept map of the whole course, with a link to every chapter.

The document prints two maps (appendix A1). One leaves the language model unconnected to deep
learning and gives data and model parallelism to it alone; the other is a tree in which threads and
models never meet. Neither has a box for what concurrency costs, or for the service.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from utils.core.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, YELLOW


@dataclass(frozen=True)
class Chapter:
    """`file` is the notebook's name without its ending; `concepts` are its boxes of the map."""

    file: str
    title: str
    color: str
    concepts: tuple[str, ...]


CHAPTERS = (
    Chapter(
        "01_overview",
        "Overview (概述)",
        BLUE,
        ("concurrency", "parallelism", "latency, throughput"),
    ),
    Chapter(
        "02_threads", "Threads (多线程编程)", SKY, ("threads", "synchronisation", "communication")
    ),
    Chapter("03_performance", "Performance (性能优化)", ORANGE, ("costs", "load balance", "laws")),
    Chapter(
        "04_deep_learning",
        "Deep learning (深度学习)",
        GREEN,
        ("data parallel", "model parallel", "inference engine"),
    ),
    Chapter("05_llm", "Language models (大语言模型)", YELLOW, ("next token", "Transformer")),
    Chapter(
        "06_llm_concurrency",
        "LLM concurrency (LLM并发)",
        PURPLE,
        ("KV cache", "continuous batching"),
    ),
    Chapter("07_qa_service", "QA service (问答服务)", VERMILION, ("admission queue", "retrieval")),
    Chapter("08_outlook", "Outlook (展望)", GREY, ("trends",)),
)

# From, to, and what the arrow says.
LINKS = (
    ("concurrency", "parallelism", "allows"),
    ("concurrency", "threads", "is programmed with"),
    ("threads", "synchronisation", "need"),
    ("threads", "communication", "need"),
    ("synchronisation", "costs", "has"),
    ("parallelism", "load balance", "needs"),
    ("latency, throughput", "laws", "obey"),
    ("communication", "model parallel", "is the price of"),
    ("costs", "model parallel", "limit"),
    ("laws", "data parallel", "limit"),
    ("load balance", "inference engine", "keeps busy"),
    ("data parallel", "Transformer", "trains"),
    ("model parallel", "Transformer", "splits"),
    ("Transformer", "next token", "predicts"),
    ("next token", "KV cache", "is served from"),
    ("inference engine", "continuous batching", "becomes"),
    ("KV cache", "continuous batching", "is the memory of"),
    ("continuous batching", "admission queue", "is fed by"),
    ("next token", "retrieval", "is informed by"),
    ("admission queue", "trends", "leads to"),
    ("retrieval", "trends", "leads to"),
)


def mermaid() -> str:
    """The map as a Mermaid flow chart: a coloured group a chapter."""
    ids = {
        concept: f"c{number}"
        for number, concept in enumerate(c for chapter in CHAPTERS for c in chapter.concepts)
    }
    lines = ["flowchart TB"]
    for number, chapter in enumerate(CHAPTERS, start=1):
        lines.append(f'  subgraph g{number}["{number} {chapter.title}"]')
        lines += [f'    {ids[concept]}["{concept}"]' for concept in chapter.concepts]
        lines.append("  end")
        lines.append(f"  style g{number} fill:{chapter.color}22,stroke:{chapter.color}")
    lines += [f'  {ids[a]} -- "{verb}" --> {ids[b]}' for a, b, verb in LINKS]
    return "\n".join(lines)


def markdown(folder: Path | None = None) -> str:
    """The map, and below it the chapters: a link where the notebook is there to be opened."""
    folder = folder or Path(__file__).parents[2] / "chapters"
    entries = []
    for number, chapter in enumerate(CHAPTERS, start=1):
        name = f"{number} {chapter.title}"
        there = (folder / f"{chapter.file}.ipynb").exists()
        entries.append(f"[{name}]({chapter.file}.ipynb)" if there else f"{name} (in preparation)")
    return f"```mermaid\n{mermaid()}\n```\n\n" + " · ".join(entries)
