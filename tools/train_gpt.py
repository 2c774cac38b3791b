"""Train a small GPT on a shardstream dataset: one file, to be read from top to bottom.

Every step takes the next G samples of one endless sequence, which the dataset, --order and --seed decide. The ranks
share the G rows evenly, so that what is learnt from does not depend on how many they are.

    python train_gpt.py DATASET                                            alone, on a GPU if there is one
    torchrun --standalone --nproc-per-node 8 train_gpt.py DATASET          on 8 GPUs, or with 8 processes on the CPU

With --checkpoint a run may die at any moment. The same command goes on from the checkpoint, on any number of ranks
that divides G, with the very samples that come next: none is skipped, none is trained on twice.

    torchrun --standalone --nproc-per-node 2 train_gpt.py DATASET --checkpoint gpt.pt
    python train_gpt.py DATASET --checkpoint gpt.pt                        the rest of it, on one rank
"""

# Names of tensors end in their shape: B samples of a rank, M tokens, E width, H heads, K width of a head, V vocabulary.

import argparse
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, distributed, nn

import shardstream
from shardstream import BatchStream

WARMUP_STEPS = 20  # the learning rate rises this long: Adam's first steps are large and know little
MAX_GRADIENT_NORM = 1.0


class Attention(nn.Module):
    """Causal self-attention: each token looks at itself and those before it."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x_BME: Tensor) -> Tensor:
        query_BHMK, key_BHMK, value_BHMK = (
            part_BME.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part_BME in self.query_key_value(x_BME).chunk(3, dim=-1)
        )
        seen_BHMK = F.scaled_dot_product_attention(query_BHMK, key_BHMK, value_BHMK, is_causal=True)
        return self.out(seen_BHMK.transpose(1, 2).flatten(-2))


class Layer(nn.Module):
    """Attention, then a two-layer network, each added to what came in."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), Attention(width, num_heads))
        wide = 4 * width
        self.network = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, width))

    def forward(self, x_BME: Tensor) -> Tensor:
        x_BME = x_BME + self.attention(x_BME)
        return x_BME + self.network(x_BME)


class GPT(nn.Module):
    """Tokens in, for each of them the logits of the token that follows."""

    def __init__(self, *, vocab_size: int, context_length: int, layers: int, heads: int, width: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.place_embedding = nn.Parameter(torch.empty(context_length, width))
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(layers)), nn.LayerNorm(width))
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, inputs_BM: Tensor) -> Tensor:
        x_BME = self.token_embedding(inputs_BM) + self.place_embedding
        return F.linear(self.layers(x_BME), self.token_embedding.weight)  # logits_BMV


def join_other_ranks(kind: str) -> tuple[torch.device, int, int]:
    """The device of this process, its dp_rank and dp_world_size; without torchrun it is alone."""
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if "WORLD_SIZE" not in os.environ:
        return torch.device(kind), 0, 1
    if kind == "cuda":
        kind = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(kind)
    # Others may download their first shard for so long; a machine that vanished is noticed after it.
    distributed.init_process_group("gloo" if kind == "cpu" else "nccl", timeout=timedelta(minutes=10))
    return torch.device(kind), distributed.get_rank(), distributed.get_world_size()


def mean_over_ranks(values: Tensor) -> list[float]:
    """The mean of each number over all ranks, shape (N,); a rank waits here for the others."""
    total = values.double()
    if distributed.is_initialized():
        distributed.all_reduce(total)
        total /= distributed.get_world_size()
    return total.tolist()


def save_checkpoint(path: Path, step: int, model_size: dict[str, int], parts: dict[str, Any]) -> None:
    """Write a checkpoint. Whatever kills this process leaves the earlier one or this one, whole."""
    states = {name: part.state_dict() for name, part in parts.items()}
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        torch.save({"step": step, "model_size": model_size, **states}, file)
        file.flush()
        os.fsync(file.fileno())  # else the name may reach the disk before the bytes
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def load_checkpoint(path: Path, model_size: dict[str, int], parts: dict[str, Any]) -> int:
    """Bring all parts back to a checkpoint, made by any number of ranks. Returns the steps done until then."""
    # Tensors and plain values, no code. On the CPU, since there the optimizer wants its counters; it moves the rest.
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    if checkpoint["model_size"] != model_size:
        raise SystemExit(
            f"{path}: holds a model of {checkpoint['model_size']}, wanted {model_size}; give its options, or another file"
        )
    for name, part in parts.items():
        part.load_state_dict(checkpoint[name])
    return checkpoint["step"]


class Progress:
    """Mean loss, speed and waiting since the last line."""

    def __init__(self, stream: BatchStream, device: torch.device) -> None:
        self.stream = stream
        self.loss_sum = torch.zeros((), device=device)  # stays on the device: to look at it is to wait for it
        self.num_steps, self.began_s, self.waited_s = 0, time.perf_counter(), 0.0

    def add(self, loss: Tensor) -> None:
        self.loss_sum += loss.detach()
        self.num_steps += 1

    def line(self, global_batch_tokens: int) -> str:
        """Of all ranks, each of which has to call this."""
        waited_s = self.stream.stats().wait_s
        sums = torch.stack([self.loss_sum, self.loss_sum.new_tensor(waited_s - self.waited_s)])
        loss, wait_s = (mean / self.num_steps for mean in mean_over_ranks(sums))
        now_s = time.perf_counter()
        step_s = (now_s - self.began_s) / self.num_steps
        self.loss_sum.zero_()
        self.num_steps, self.began_s, self.waited_s = 0, now_s, waited_s
        return f"loss {loss:.4f}  {global_batch_tokens / step_s:,.0f} tokens/s  waiting for data {wait_s / step_s:.2%}"


def train(options: argparse.Namespace, device: torch.device, dp_rank: int, dp_world_size: int) -> None:
    torch.manual_seed(options.seed)
    dataset = shardstream.open(options.dataset)
    batch_size = options.global_batch_size // dp_world_size
    stream = BatchStream(  # torch.distributed tells it which rank this is
        dataset,
        batch_size=batch_size,
        context_length=options.context_length,
        order=options.order,
        seed=options.seed,
        device=device,
    )
    model_size = {name: getattr(options, name) for name in ("context_length", "layers", "heads", "width")}
    model = GPT(vocab_size=dataset.manifest.vocab_size, **model_size).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95))
    # Nothing draws random numbers from now on: no generator has to be saved.
    parts = {"stream": stream, "model": model, "optimizer": optimizer}
    is_resumed = options.checkpoint and options.checkpoint.exists()
    step = load_checkpoint(options.checkpoint, model_size, parts) if is_resumed else 0
    if mean_over_ranks(torch.tensor([step], device=device)) != [step]:
        raise SystemExit(f"rank {dp_rank} is at step {step}, others are not; put --checkpoint where all ranks see it")
    where = f"process {os.getpid()} on {device}, step {step} of {options.steps}"
    print(f"rank {dp_rank} of {dp_world_size}: {where}\n", end="", flush=True)  # in one piece: ranks share the screen
    shared_model = nn.parallel.DistributedDataParallel(model) if distributed.is_initialized() else model
    progress = Progress(stream, device)

    while step < options.steps:
        inputs_BM, targets_BM = next(stream)
        if options.position_log:
            # Before the gradients are shared: when any rank has done this step, all have written down its samples.
            first_sample = stream.num_samples - options.global_batch_size + dp_rank * batch_size
            with Path(f"{options.position_log}.rank{dp_rank}").open("a", encoding="ascii") as log:
                log.writelines(f"{step} {first_sample + row} {start}\n" for row, start in enumerate(stream.positions))

        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits_BMV = shared_model(inputs_BM)
        loss = F.cross_entropy(logits_BMV.flatten(0, 1).float(), targets_BM.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        for group in optimizer.param_groups:
            group["lr"] = options.lr * min(1, (step + 1) / WARMUP_STEPS)
        optimizer.step()
        step += 1

        progress.add(loss)
        if step % options.log_every == 0 or step == options.steps:
            line = progress.line(options.global_batch_size * options.context_length)
            if dp_rank == 0:
                print(f"step {step}  {line}", flush=True)
        if options.checkpoint and dp_rank == 0 and (step % options.checkpoint_every == 0 or step == options.steps):
            save_checkpoint(options.checkpoint, step, model_size, parts)
    print(f"rank {dp_rank}: {stream.stats()}\n", end="", flush=True)
    stream.close()


def parsed_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("dataset", metavar="DATASET", help="folder or URL of a shardstream dataset")
    add("--steps", type=int, default=1000, metavar="N", help="of the whole run, resumed or not [%(default)s]")
    add("--context-length", type=int, default=128, metavar="N", help="inputs of a sample, in tokens [%(default)s]")
    add("--global-batch-size", type=int, default=16, metavar="G", help="samples of a step, all ranks' [%(default)s]")
    add("--order", default="shuffle", help="shuffle, block-shuffle, sequential or random [%(default)s]")
    add("--seed", type=int, default=0, metavar="N", help="decides the order and the first weights [%(default)s]")
    add("--lr", type=float, default=1e-3, help="learning rate after a warm-up; may change at a resume [%(default)s]")
    add("--layers", type=int, default=4, metavar="N", help="layers of the model [%(default)s]")
    add("--heads", type=int, default=4, metavar="N", help="attention heads of a layer; divide the width [%(default)s]")
    add("--width", type=int, default=128, metavar="N", help="numbers that stand for a token inside [%(default)s]")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU per rank if there is any")
    add("--log-every", type=int, default=10, metavar="STEPS", help="print loss, speed, share of waiting [%(default)s]")
    add("--checkpoint", type=Path, metavar="FILE", help="save here, and go on from here; all ranks must see it")
    add("--checkpoint-every", type=int, default=100, metavar="STEPS", help="and after the last one [%(default)s]")
    add("--position-log", metavar="FILE", help="append step, sample and position of each sample to FILE.rank0, ...")
    options = parser.parse_args()
    for name, value in vars(options).items():
        if isinstance(value, int) and value < 1 and name != "seed":
            parser.error(f"--{name.replace('_', '-')} is {value}; wanted at least 1")
    if options.width % options.heads:
        parser.error(f"--width {options.width} is no multiple of --heads {options.heads}; change one of them")
    dp_world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if options.global_batch_size % dp_world_size:
        parser.error(f"--global-batch-size {options.global_batch_size} is no multiple of the {dp_world_size} ranks")
    return options


if __name__ == "__main__":
    options = parsed_options()
    train(options, *join_other_ranks(options.device))
    if distributed.is_initialized():
        distributed.destroy_process_group()
