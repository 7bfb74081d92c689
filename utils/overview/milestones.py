"""Dated, cited milestones of concurrency, the data behind section 1.2.

A date is that of first public release, publication or arXiv submission, as the source says.
"""

from __future__ import annotations

from dataclasses import dataclass

HARDWARE, MODELS = "hardware", "programming models"
TRAINING, SERVING = "deep learning", "LLM serving"
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(frozen=True)
class Milestone:
    """One dated event; `change` says what it changed for concurrency, `source` where to check."""

    year: int
    month: int | None  # None where the source gives only the year
    track: str
    name: str
    change: str
    source: str
    url: str

    @property
    def when(self) -> float:
        """The date as a decimal year: the middle of the month, or of the year."""
        return self.year + (0.5 if self.month is None else (self.month - 0.5) / 12)

    @property
    def date(self) -> str:
        return str(self.year) if self.month is None else f"{MONTHS[self.month - 1]} {self.year}"


def _arxiv(number: str) -> str:
    return f"https://arxiv.org/abs/{number}"


def _pep(number: int) -> str:
    return f"https://peps.python.org/pep-{number:04}/"


MILESTONES = (
    Milestone(
        1961, 11, HARDWARE, "CTSS time-sharing",
        "One processor switches between several waiting people: concurrency without parallelism.",
        "Corbató, Merwin-Daggett and Daley, An Experimental Time-Sharing System, AFIPS SJCC 1962",
        "https://doi.org/10.1145/1460833.1460871",
    ),
    Milestone(
        1962, None, HARDWARE, "Burroughs D825",
        "Several equal processors share one memory, four decades before two cores share a chip.",
        "Anderson et al., D825, 1962; reprinted in Bell and Newell, Computer Structures, ch. 36",
        "https://gordonbell.azurewebsites.net/computer_structures__readings_and_examples/"
        "00000466.htm",
    ),
    Milestone(
        1965, 9, MODELS, "semaphores",
        "A process that cannot go on sleeps until another one signals, instead of spinning.",
        "Dijkstra, Cooperating Sequential Processes, EWD 123, 1965",
        "https://www.cs.utexas.edu/~EWD/transcriptions/EWD01xx/EWD123.html",
    ),
    Milestone(
        1974, 10, MODELS, "monitors",
        "Data, its lock and its condition variables become one unit, as in threading.Condition.",
        "Hoare, Monitors: An Operating System Structuring Concept, CACM 17(10), 1974",
        "https://doi.org/10.1145/355620.361161",
    ),
    Milestone(
        1992, 8, MODELS, "Python threads, GIL",
        "Python gets threads and one interpreter lock, released around blocking calls.",
        "CPython commit 1984f1e, 4 August 1992",
        "https://github.com/python/cpython/commit/1984f1e1c6306d4e8073c28d2395638f80ea509b",
    ),
    Milestone(
        1995, 6, MODELS, "POSIX threads",
        "One portable interface for threads, locks and conditions, when one core was the rule.",
        "IEEE Std 1003.1c-1995; see standards(7)",
        "https://man7.org/linux/man-pages/man7/standards.7.html",
    ),
    Milestone(
        1997, 10, MODELS, "OpenMP",
        "A comment above a loop spreads it over the processors of a shared-memory machine.",
        "Dagum and Menon, OpenMP, IEEE Computational Science and Engineering 5(1), 1998",
        "https://doi.org/10.1109/99.660313",
    ),
    Milestone(
        2001, None, HARDWARE, "IBM POWER4",
        "A server processor puts two cores on one chip, sharing its second-level cache.",
        "Tendler et al., POWER4 System Microarchitecture, IBM J. Res. Dev. 46(1), 2002",
        "https://doi.org/10.1147/rd.461.0005",
    ),
    Milestone(
        2002, None, HARDWARE, "Hyper-Threading",
        "One core runs two hardware threads, filling the cycles in which one of them waits.",
        "Koufaty and Marr, Hyperthreading Technology in the Netburst Microarchitecture, "
        "IEEE Micro 23(2), 2003",
        "https://doi.org/10.1109/MM.2003.1196115",
    ),
    Milestone(
        2005, 4, HARDWARE, "dual-core PCs",
        "Desktop processors gain cores instead of clock speed: more speed now needs more threads.",
        "eWEEK, Intel Confirms Dual-Core Launch, April 2005",
        "https://www.eweek.com/pc-hardware/intel-confirms-dual-core-launch",
    ),
    Milestone(
        2006, 8, MODELS, "TBB",
        "C++ programs describe tasks; a work-stealing scheduler spreads them over the threads.",
        "Intel, General Questions about TBB",
        "https://software.intel.com/en-us/articles/general-questions-about-tbb",
    ),
    Milestone(
        2007, None, MODELS, "CUDA 1.0",
        "Thousands of GPU threads, in groups that run in lockstep, are programmed in C.",
        "NVIDIA, CUDA Toolkit archive",
        "https://developer.nvidia.com/cuda-toolkit-archive",
    ),
    Milestone(
        2008, 10, MODELS, "multiprocessing",
        "Python 2.6 uses all cores with processes, each with its own interpreter lock.",
        "PEP 371; release date in PEP 361",
        _pep(371),
    ),
    Milestone(
        2009, 6, TRAINING, "deep nets on GPUs",
        "Training moves to graphics processors: up to 70 times faster than a dual-core CPU.",
        "Raina, Madhavan and Ng, Large-scale Deep Unsupervised Learning Using Graphics Processors, "
        "ICML 2009",
        "https://doi.org/10.1145/1553374.1553486",
    ),
    Milestone(
        2011, 2, MODELS, "concurrent.futures",
        "Python 3.2 gives thread and process pools one interface: submit work, hold a future.",
        "PEP 3148; release date in PEP 392",
        _pep(3148),
    ),
    Milestone(
        2011, 6, TRAINING, "Hogwild!",
        "Workers update shared parameters without locks; with sparse gradients it still converges.",
        "Recht, Ré, Wright and Niu, Hogwild!, NIPS 2011, arXiv 1106.5730",
        _arxiv("1106.5730"),
    ),
    Milestone(
        2012, 3, MODELS, "Go 1",
        "Goroutines and channels: many cheap tasks on few threads, built into the language.",
        "The Go project reaches a major milestone: Go 1, Google Open Source Blog, 28 March 2012",
        "https://opensource.googleblog.com/2012/03/go-project-reaches-major-milestone-go-1.html",
    ),
    Milestone(
        2012, 12, TRAINING, "AlexNet",
        "One network split over two GPUs wins ImageNet: parallel hardware decides the contest.",
        "Krizhevsky, Sutskever and Hinton, ImageNet Classification with Deep CNNs, NIPS 2012",
        "https://proceedings.neurips.cc/paper/"
        "4824-imagenet-classification-with-deep-convolutional-neural-networks",
    ),
    Milestone(
        2014, 3, MODELS, "asyncio",
        "Python 3.4 interleaves thousands of waiting tasks in one thread.",
        "PEP 3156; release date in PEP 429",
        _pep(3156),
    ),
    Milestone(
        2015, None, HARDWARE, "TPU",
        "A systolic array without caches or multithreading serves nets with predictable latency.",
        "Jouppi et al., In-Datacenter Performance Analysis of a TPU, ISCA 2017, arXiv 1704.04760",
        _arxiv("1704.04760"),
    ),
    Milestone(
        2017, 6, TRAINING, "Transformer",
        "Attention replaces recurrence: all positions of a sequence train in parallel.",
        "Vaswani et al., Attention Is All You Need, NIPS 2017, arXiv 1706.03762",
        _arxiv("1706.03762"),
    ),
    Milestone(
        2018, 2, TRAINING, "Horovod",
        "Ring all-reduce averages gradients among workers; no central parameter server is needed.",
        "Sergeev and Del Balso, Horovod, arXiv 1802.05799",
        _arxiv("1802.05799"),
    ),
    Milestone(
        2018, 11, TRAINING, "GPipe",
        "Layers live on different devices; micro-batches keep the whole pipeline busy.",
        "Huang et al., GPipe, NeurIPS 2019, arXiv 1811.06965",
        _arxiv("1811.06965"),
    ),
    Milestone(
        2019, 9, TRAINING, "Megatron-LM",
        "Every matrix of a layer is split over GPUs that exchange activations.",
        "Shoeybi et al., Megatron-LM, arXiv 1909.08053",
        _arxiv("1909.08053"),
    ),
    Milestone(
        2019, 10, TRAINING, "ZeRO",
        "Data-parallel workers stop storing the same optimiser state: each keeps a share.",
        "Rajbhandari et al., ZeRO, SC 2020, arXiv 1910.02054",
        _arxiv("1910.02054"),
    ),
    Milestone(
        2020, 6, TRAINING, "PyTorch DDP",
        "Gradient exchange hides behind the backward pass, bucket by bucket.",
        "Li et al., PyTorch Distributed, VLDB 2020, arXiv 2006.15704",
        _arxiv("2006.15704"),
    ),
    Milestone(
        2022, 5, TRAINING, "FlashAttention",
        "Attention in tiles that fit on-chip memory: moving data, not arithmetic, was the limit.",
        "Dao et al., FlashAttention, NeurIPS 2022, arXiv 2205.14135",
        _arxiv("2205.14135"),
    ),
    Milestone(
        2022, 7, SERVING, "Orca",
        "Requests join and leave a running batch after every token: continuous batching.",
        "Yu et al., Orca, OSDI 2022",
        "https://www.usenix.org/conference/osdi22/presentation/yu",
    ),
    Milestone(
        2022, 11, SERVING, "speculative decoding",
        "A small model drafts tokens; the large one checks several of them in one pass.",
        "Leviathan, Kalman and Matias, ICML 2023, arXiv 2211.17192",
        _arxiv("2211.17192"),
    ),
    Milestone(
        2023, 8, SERVING, "chunked prefill",
        "Long prompts are cut into pieces that share batches with other people's decoding.",
        "Agrawal et al., SARATHI, arXiv 2308.16369",
        _arxiv("2308.16369"),
    ),
    Milestone(
        2023, 9, MODELS, "Java virtual threads",
        "Java 21 runs millions of cheap threads on a few operating-system threads.",
        "JEP 444",
        "https://openjdk.org/jeps/444",
    ),
    Milestone(
        2023, 9, SERVING, "vLLM",
        "The KV cache is paged like virtual memory, so more requests fit together.",
        "Kwon et al., PagedAttention, SOSP 2023, arXiv 2309.06180",
        _arxiv("2309.06180"),
    ),
    Milestone(
        2023, 12, SERVING, "SGLang",
        "Requests with a common beginning share its KV cache through a radix tree.",
        "Zheng et al., SGLang, NeurIPS 2024, arXiv 2312.07104",
        _arxiv("2312.07104"),
    ),
    Milestone(
        2024, 1, SERVING, "DistServe",
        "Prefill and decoding run on different GPUs, so neither delays the other.",
        "Zhong et al., DistServe, OSDI 2024, arXiv 2401.09670",
        _arxiv("2401.09670"),
    ),
    Milestone(
        2024, 10, MODELS, "free-threaded Python",
        "An experimental build of Python 3.13 runs threads on several cores at once.",
        "PEP 703; release date in PEP 719",
        _pep(703),
    ),
    Milestone(
        2025, 10, MODELS, "free threading supported",
        "Python 3.14 makes the free-threaded build officially supported, still optional.",
        "PEP 779; release date in PEP 745",
        _pep(779),
    ),
)  # fmt: skip
