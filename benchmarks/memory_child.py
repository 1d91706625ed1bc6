"""Started by memory.py: the peak memory of training steps as LLaMA-Factory makes them, on random weights.

    python benchmarks/memory_child.py CASES.json

CASES.json is a list of cases, each holding
    config      the model's config.json as an object; `model_type` is needed
    saved       dtype of the base weights (float32)          precision   fp32, bf16, fp16 or as-saved
    method      lora, full or freeze                         lora_rank, lora_target, lora_dropout
    micro_batch_size, cutoff_len, accumulation               tokens are random and fill every row
    gradient_checkpointing, attention (disabled, sdpa), optimizer, use_dora, pure_bf16
    quantization_bit            4: the blocks' linear layers as bitsandbytes holds them; not for a CPU's peak
    eval_batch_size                                          rows of an evaluation after the steps; 0 for none
Prints one line of JSON a case: {"peak_gib", "rss_gib", "context_gib", "parameters", "trainable", "device"}. The peak
counts torch's own allocations, weights included: those of the accelerator if there is one, else those of the CPU as
torch's profiler sees them. `rss_gib` is the most that the whole process has held so far.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

GIB = 2**30
STEPS = 2  # the first makes the optimizer's states, the second runs with them
ATTENTION = {"disabled": "eager", "sdpa": "sdpa", "fa2": "flash_attention_2"}


def build(case: dict[str, Any]) -> Any:
    """The model as LLaMA-Factory prepares it: checkpointing first, then the trainable parameters."""
    from llamafactory.hparams import FinetuningArguments, ModelArguments
    from llamafactory.model.adapter import init_adapter
    from llamafactory.model.model_utils.checkpointing import prepare_model_for_training
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**case["config"])
    config.use_cache = False
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, case["saved"]), attn_implementation=ATTENTION[case["attention"]]
        )
    if case["quantization_bit"]:
        quantise(model)
    model_arguments = ModelArguments(
        model_name_or_path="random", disable_gradient_checkpointing=not case["gradient_checkpointing"]
    )
    finetuning = FinetuningArguments(
        finetuning_type=case["method"],
        lora_rank=case["lora_rank"],
        lora_target=case["lora_target"],
        lora_dropout=case["lora_dropout"],
        use_dora=case["use_dora"],
        pure_bf16=case["pure_bf16"],
    )
    prepare_model_for_training(model, model_arguments)
    return init_adapter(config, model, model_arguments, finetuning, is_trainable=True)


def quantise(model: Any) -> None:
    """As LLaMA-Factory has it loaded: NF4, doubly quantised. The peak of making it is not the training's."""
    import bitsandbytes as bnb

    for parent in list(model.model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is torch.nn.Linear:
                where, bias = layer.weight.device, layer.bias is not None
                new = bnb.nn.Linear4bit(
                    layer.in_features, layer.out_features, bias, layer.weight.dtype, quant_type="nf4", device="meta"
                )
                new.weight = bnb.nn.Params4bit(layer.weight.data.cpu(), requires_grad=False, quant_type="nf4")
                new.bias = layer.bias
                setattr(parent, name, new.to(where))
    model.is_loaded_in_4bit = True
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def train(model: Any, case: dict[str, Any], folder: str) -> None:
    """Two optimizer steps of transformers' own trainer."""
    from transformers import Trainer, TrainingArguments

    rows = case["micro_batch_size"] * case["accumulation"] * STEPS
    tokens = torch.randint(case["config"]["vocab_size"], (rows, case["cutoff_len"]))
    settings = TrainingArguments(
        output_dir=folder,
        max_steps=STEPS,
        per_device_train_batch_size=case["micro_batch_size"],
        gradient_accumulation_steps=case["accumulation"],
        optim=case["optimizer"],
        bf16=case["precision"] == "bf16" and not case["pure_bf16"],
        per_device_eval_batch_size=case["eval_batch_size"] or 1,
        fp16=case["precision"] == "fp16",
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    data = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in tokens]
    trainer = Trainer(model=model, args=settings, train_dataset=data)
    trainer.train()
    if case["eval_batch_size"]:
        trainer.evaluate(data[:1] * 2 * case["eval_batch_size"])


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Peak of one case in GiB; nothing of the case is left in memory."""
    gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            counts, peak = run(case, folder), torch.cuda.max_memory_allocated()
        else:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
                counts = run(case, folder)
                gc.collect()  # what is freed while the profiler does not look would count as held by the next case
            peak = peak_of(seen, Path(folder) / "trace.json")
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"peak_gib": peak / GIB, "rss_gib": resident, "context_gib": context_gib(), **counts, "device": device}


def context_gib() -> float | None:
    """What this process and others hold on the device beside torch's allocator; None on CPU."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return float(total - free - torch.cuda.memory_reserved()) / GIB


def run(case: dict[str, Any], folder: str) -> dict[str, int]:
    """Builds and trains; returns the numbers of parameters."""
    model = build(case)
    train(model, case, folder)
    parameters = list(model.parameters())
    trainable = sum(each.numel() for each in parameters if each.requires_grad)
    return {"parameters": sum(each.numel() for each in parameters), "trainable": trainable}


def peak_of(seen: Any, trace: Path) -> int:
    """Highest total in bytes that the CPU allocator reported while the profiler looked."""
    seen.export_chrome_trace(str(trace))
    events = [event for event in json.loads(trace.read_bytes())["traceEvents"] if event.get("name") == "[memory]"]
    events.sort(key=lambda event: event["ts"])
    held, peak = 0, 0
    for event in events:
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


if __name__ == "__main__":
    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # small tensors: more threads only wait for each other
    for wanted in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        sys.stdout.write(json.dumps(measure(wanted)) + "\n")
        sys.stdout.flush()
