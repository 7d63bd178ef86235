"""The sections, in the order in which they run: what must be so first, then what it costs."""

from __future__ import annotations

from gpu_sections import attack_bits, boards, compiling, correctness, failures, hardware, price, speed, steps
from gpu_sections.section import Section

SECTIONS = (
    Section("device", "Which device is it, and how fast?", hardware.device, 20),
    Section("phi", "Are φ and φ′ right?", correctness.activation, 60),
    Section("steering", "Does the steering reach the activations that it reaches on a CPU?", correctness.steering, 30),
    Section("logits", "Are the logits the CPU's, whatever is allowed?", correctness.logits, 30),
    Section("attacks", "Does an attack give the same bits every time?", attack_bits.attacks, 120),
    Section("boards", "Is a board the same on two workers, of which one is killed?", boards.boards, 120),
    Section("memory", "Does a run go on when memory is short?", failures.memory, 60),
    Section("lost", "Does a run go on when a device is lost?", failures.lost, 60),
    Section("compile", "What does the compiler make of the network?", compiling.compile, 60),
    Section("speed", "How fast is the network?", speed.speed, 180),
    Section("steps", "What does a step of an attack cost, besides the network?", steps.steps, 60),
    Section("projections", "What do FAB's projections cost?", steps.projections, 30),
    Section("estimate", "Does the memory stay below the estimate?", price.estimate, 30),
    Section("board", "What does a real board cost?", price.board, 180),
)
