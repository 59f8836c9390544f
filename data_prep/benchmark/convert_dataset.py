"""ModernBERT's way from text to shards: its own src/convert_dataset.py, called from a checkout."""
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from streaming import LocalDataset, MDSWriter
from transformers import AutoTokenizer

from data_prep.benchmark.texts import ROW_LENGTH
from mmbert.benchmark.checkout import load_module
from mmbert.packing import TokenIds
from mmbert.tokenizer import Tokenizer

BATCH_SIZE = 512  # its own, of the loader that hands samples to the writer
COLUMNS = {"tokens": "bytes"}


def converter(checkout: Path, tokenizer: Tokenizer, source: Path) -> Callable[[Path], None]:
    """Its main() with --concat_tokens, for one folder of JSON lines: a function of the output folder.

    main() itself takes the names of two corpora and no others. One file makes one loader process.
    """
    module = load_module(checkout, "convert_dataset")
    loaded = AutoTokenizer.from_pretrained(str(tokenizer.folder))
    loaded.model_max_length = int(1e30)

    def convert(output: Path) -> None:
        dataset = module.build_hf_dataset(
            dataset_name=str(source),
            split="train",
            mode=module.ConcatMode.CONCAT_TOKENS,
            max_length=ROW_LENGTH,
            bos_text="",
            eos_text="",
            no_wrap=False,
            tokenizer=loaded,
        )
        loader = module.build_dataloader(dataset=dataset, batch_size=BATCH_SIZE)
        with MDSWriter(columns=COLUMNS, out=str(output)) as writer:
            for sample in module.generate_samples(loader):
                writer.write(sample)

    return convert


def documents_of(output: Path, eos_token_id: int) -> Iterator[TokenIds]:
    """The whole documents in its samples, without <bos> and <eos>; one that is cut off at the end is left out."""
    samples = LocalDataset(str(output))
    parts = [np.frombuffer(samples[number]["tokens"], dtype=np.int64) for number in range(len(samples))]
    ids = np.concatenate(parts).astype(np.uint32)
    ends = np.flatnonzero(ids == eos_token_id) + 1
    return (document[1:-1] for document in np.split(ids, ends)[:-1])
