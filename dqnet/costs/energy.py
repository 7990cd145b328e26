"""Energy of an image: multiply-accumulates at reduced precision, and what is moved for them.

After Moons, Bankman, Verhelst, *Embedded Deep Learning*, Springer 2018, chapter 3, and Moons et
al., *Minimum Energy Quantized Neural Networks*, 2017 (https://arxiv.org/abs/1711.00215): the energy
of a multiply-accumulate falls with its precision Q as a power law, E(Q) = E(16) · (Q/16)ⁿ, and data
are moved through a hierarchy of memories whose accesses cost in proportion to the bits. Of a layer
with M multiply-accumulates, w-bit weights and a-bit inputs, in 16-bit words:

    E = M · (1 − z_w)(1 − z_a) · (mac · (√(w·a)/16)ⁿ + local · (w + a)/16)
      + on_chip · (W·w·(1 − z_w) + I·a·(1 − z_a) + O·a)/16
      + off_chip · (what does not fit of W·w, of I·a and of O·a)/16

W, I and O are the elements of weight, input and output, z_w and z_a the shares of zeros among
weights and inputs. The sources have

- n = 1.25 and accesses in proportion to the bits: Moons et al., whose 16-bit multiply-accumulate
  takes 3.7 pJ in 40 nm;
- the memories' default constants, relative to a 16-bit multiply-accumulate: Chen, Emer, Sze,
  *Eyeriss*, ISCA 2016, table IV, with 1 for the register file, 6 for the global buffer and 200 for
  DRAM (and 2 for a neighbour's registers, which this model does not have);
- that guards skip zeros: Moons et al., *Envision*, ISSCC 2017.

The rest is this package's choice:

- Q of a layer whose weights and inputs differ is √(w·a), the width that the rest of this package
  has for it.
- A weight is read from the on-chip memory once for an image and a layer, as are inputs; outputs are
  written once, at the bits of the layer's own input. That supposes ideal reuse in the local memory.
- A layer that fits into the buffers does not go off the chip. Whether the network's weights fit all
  together is not asked.
- Each multiply-accumulate reads its two operands from the local memory; where units share them it
  takes less. Partial sums cost nothing beyond ``mac``.
- A zero is neither read nor multiplied by; zeros of weights and of inputs are independent of each
  other. What goes off the chip is not compressed. Without measured sparsity no zero is skipped.
- Buffers of 64 KiB each, for weights, inputs and outputs. Eyeriss has 108 kB in all.
- Full precision counts as 32 bits on both sides of the power law.
- A Winograd convolution of b bits has its products of taps for M, both at b bits, and reads its
  weights transformed, (m + 2)²/9 as many. To that come the additions of its transforms, at ``add``
  each in proportion to b. Of its zeros only those of inputs that are read are skipped: transformed
  numbers have others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from dqnet.costs.base import check_parameters, cost_model
from dqnet.costs.rows import checked_rows
from dqnet.errors import UserError
from dqnet.formats import FULL_PRECISION_BITS, Format, Precision
from dqnet.layers.winograd import KERNEL
from dqnet.plan import LayerPlan

COLUMNS = ("layer", "tensor", "format", "zeros")
#: bits of the word that energies are of
WORD = 16


@cost_model("energy")
@dataclass(frozen=True)
class Energy:
    """Energy in units of one 16-bit multiply-accumulate, unless constants in pJ are given.

    Where the defaults are from is said above; other hardware: ``conf/cost``.

    Attributes:
        mac: of one multiply-accumulate of 16 × 16 bits.
        exponent: n of the power law; 1.25 in Moons et al.
        local: of one access to a 16-bit word beside the multiplier, of which each
            multiply-accumulate makes two.
        add: of one addition of 16 bits, in the transforms of Winograd convolutions: 0.05 pJ in
            Horowitz's table (``conf/cost/energy_45nm.yaml``), which is as much in units of its
            16-bit multiply-accumulate, 0.98 pJ.
        on_chip: of one access to a 16-bit word of the on-chip buffer.
        off_chip: of one access to a 16-bit word of external memory.
        weight_buffer, activation_buffer: bytes; the second one is for inputs and for outputs each.
        unit: what a number is.
        sparsity: rows of layer, ``weight`` or ``input``, format, and share of zeros in [0, 1], as
            :func:`dqnet.costs.sparsity.measure_sparsity` returns them; empty: not known.

    Raises:
        UserError: for a constant that is negative, or a row that is wrong.
    """

    TABLE: ClassVar[str] = "sparsity"

    mac: float = 1.0
    exponent: float = 1.25
    local: float = 1.0
    add: float = 0.05
    on_chip: float = 6.0
    off_chip: float = 200.0
    weight_buffer: float = 65536
    activation_buffer: float = 65536
    unit: str = "16-bit MACs"
    sparsity: Sequence[Sequence[Any]] = ()

    def __post_init__(self) -> None:
        names = ("mac", "exponent", "local", "add", "on_chip", "off_chip")
        check_parameters(self, dict.fromkeys((*names, "weight_buffer", "activation_buffer"), 0))
        rows = checked_rows(self.sparsity, COLUMNS)
        for layer, tensor, _, zeros in rows:
            if tensor not in ("weight", "input") or zeros > 1:
                raise UserError(
                    f"sparsity of {layer}: {tensor} {zeros:g}; it is of weight or input, in [0, 1]"
                )
        object.__setattr__(self, "sparsity", rows)

    def layer(self, layer: LayerPlan, precision: Precision | None) -> float:
        """Energy for one image.

        Raises:
            UserError: if sparsity was measured, and not of this layer at this precision.
        """
        w, a = FULL_PRECISION_BITS, FULL_PRECISION_BITS
        kept_w = kept_a = 1.0
        if precision is not None:
            w, a = precision.weight.bits, precision.input.bits
            kept_w = 1 - self._zeros_of(layer, "weight", precision.weight)
            kept_a = 1 - self._zeros_of(layer, "input", precision.input)
        weights, inputs, outputs = layer.weights * w, layer.inputs * a, layer.outputs * a
        count, kept, additions = layer.macs, kept_w * kept_a, 0.0
        if layer.winograd is not None:
            w = a = layer.winograd.bits
            weights = layer.weights * w * layer.winograd.taps / KERNEL**2
            count, kept, kept_w = layer.multiplications, 1.0, 1.0
            additions = layer.additions * self.add * w / WORD
        multiply = self.mac * ((w * a) ** 0.5 / WORD) ** self.exponent
        operands = self.local * (w + a) / WORD
        near = weights * kept_w + inputs * kept_a + outputs
        far = max(0, weights - 8 * self.weight_buffer)
        far += sum(max(0, bits - 8 * self.activation_buffer) for bits in (inputs, outputs))
        moved = (self.on_chip * near + self.off_chip * far) / WORD
        return count * kept * (multiply + operands) + additions + moved

    @property
    def precisions(self) -> tuple[Precision, ...] | None:
        """Those whose sparsity is known in every layer; ``None``: it matters in none."""
        if not self.sparsity:
            return None
        formats = [
            {Format.parse(own) for layer, t, own, _ in self.sparsity if (layer, t) == key}
            for key in {(layer, tensor) for layer, tensor, *_ in self.sparsity}
        ]
        common = sorted(set.intersection(*formats), key=lambda own: own.bits)
        return tuple(Precision(own, own) for own in common)

    @cached_property
    def _zeros(self) -> dict[tuple[str, str, str], float]:
        return {(layer, tensor, own): zeros for layer, tensor, own, zeros in self.sparsity}

    @cached_property
    def _layers(self) -> set[str]:
        return {layer for layer, *_ in self.sparsity}

    def _zeros_of(self, layer: LayerPlan, tensor: str, own: Format) -> float:
        if layer.name not in self._layers:
            return 0.0  # nothing was measured, or the layer was in full precision then
        found = self._zeros.get((layer.name, tensor, str(own)))
        if found is None:
            raise UserError(
                f"the sparsity of layer {layer.name!r} was not measured with its {tensor} at {own}"
            )
        return found
