//! Where the scales and the codes of each tensor type stand in its blocks.
//!
//! [`CODECS`] has one line for each type that can be refined, [`UNREFINED`] one for each that cannot, with the reason. The layouts
//! are those of ggml's `ggml-common.h` and of the `dequantize_row_*` functions in `ggml-quants.c`; the engine's tests compare every
//! codec with these functions. Scales are computed with ggml's operations in ggml's order, so a value computed here has the bits that
//! ggml computes.

use half::f16;

use crate::tensor_type::TensorType;

/// The largest number of columns in a block of any type.
pub(super) const MAX_BLOCK: usize = 256;

/// What the codes of a type stand for.
#[derive(Clone, Copy)]
pub(super) enum Codes {
    /// `scale * (code - zero) - minimum`, for codes from `least` to `most`.
    Linear {
        /// The code of the value 0.
        zero: i16,
        /// The least code.
        least: i16,
        /// The largest code.
        most: i16,
    },
    /// `scale * table[code]`. The table need not be in order.
    Table(&'static [i8; 16]),
    /// `scale * sign * grid[code]`, one code for `width` columns.
    Codebook(Codebook),
}

/// A type whose codes are entries of a grid of vectors.
#[derive(Clone, Copy)]
pub(super) struct Codebook {
    /// Columns of an entry: 4 or 8.
    pub(super) width: usize,
    /// Entries of the grid.
    pub(super) entries: usize,
    /// Whether each sign is free. Otherwise the signs of 8 columns have even parity, and they stay what they are.
    pub(super) free_signs: bool,
    /// The scale of a block whose `d` is 1 and whose other scales are zero bits.
    pub(super) unit: f32,
}

/// The scales of a block: scales and minimums for its groups, in order.
type ReadScales = fn(&[u8], &mut [f32], &mut [f32]);
/// Reads the codes of a block; for codebooks one code for each entry.
type ReadCodes = fn(&[u8], &mut [u16]);
/// Writes the codes of a block and leaves its scales.
type WriteCodes = fn(&mut [u8], &[u16]);

/// Reads and writes the signs of a block.
type Signs = (fn(&[u8], &mut [u8]), fn(&mut [u8], &[u8]));

/// One type.
#[derive(Clone, Copy)]
pub(super) struct Codec {
    pub(super) ty: TensorType,
    /// Columns that share a scale.
    pub(super) group: usize,
    /// Whether groups have minimums.
    pub(super) minimums: bool,
    pub(super) codes: Codes,
    pub(super) read_scales: ReadScales,
    pub(super) read_codes: ReadCodes,
    pub(super) write_codes: WriteCodes,
    /// For codebooks: reads and writes the signs of a block, one byte for 8 columns, bit `i` for column `i`.
    pub(super) signs: Option<Signs>,
}

impl Codec {
    /// Returns the columns of a block.
    pub(super) fn block(&self) -> usize {
        self.ty.block_elements() as usize
    }

    /// Returns the bytes of a block.
    pub(super) fn bytes(&self) -> usize {
        self.ty.block_bytes() as usize
    }

    /// Returns true for types of at most 4 levels.
    pub(super) fn few_levels(&self) -> bool {
        matches!(self.codes, Codes::Linear { least, most, .. } if most - least < 4)
    }

    /// Returns the codes of a block.
    pub(super) fn codes_per_block(&self) -> usize {
        match self.codes {
            Codes::Codebook(book) => self.block() / book.width,
            _ => self.block(),
        }
    }
}

/// Returns the codec of a type.
pub(super) fn codec(ty: TensorType) -> Option<&'static Codec> {
    CODECS.iter().find(|codec| codec.ty == ty)
}

/// Returns why tensors of a type are not refined; nothing if they are.
pub fn why_not_refined(ty: TensorType) -> Option<&'static str> {
    if codec(ty).is_some() {
        return None;
    }
    let reason = UNREFINED.iter().find(|(other, _)| *other == ty);
    Some(reason.map_or("it is no quantized type", |(_, reason)| reason))
}

/// The values of IQ4_NL and IQ4_XS.
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// The values of MXFP4, doubled.
const FP4: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

const fn linear(zero: i16, least: i16, most: i16) -> Codes {
    Codes::Linear { zero, least, most }
}

const fn book(width: usize, entries: usize, free_signs: bool, unit: f32) -> Codes {
    Codes::Codebook(Codebook {
        width,
        entries,
        free_signs,
        unit,
    })
}

macro_rules! codecs {
    ($($ty:ident $group:literal $minimums:literal $codes:expr, $scales:expr, $read:expr, $write:expr, $signs:expr;)*) => {
        /// Every type that can be refined.
        const CODECS: &[Codec] = &[$(Codec {
            ty: TensorType::$ty, group: $group, minimums: $minimums, codes: $codes,
            read_scales: $scales, read_codes: $read, write_codes: $write, signs: $signs,
        },)*];
    };
}

// type, columns of a scale, minimums?, meaning of the codes, scales, codes (read, write), signs (read, write)
codecs! {
    Q4_0 32 false linear(8, 0, 15), |b, s, _| s[0] = half(b, 0), |b, q| halves(&b[2..], q), |b, q| set_halves(&mut b[2..], q), None;
    Q4_1 32 true linear(0, 0, 15), half_and_minimum, |b, q| halves(&b[4..], q), |b, q| set_halves(&mut b[4..], q), None;
    Q5_0 32 false linear(16, 0, 31), |b, s, _| s[0] = half(b, 0), |b, q| fifths(&b[2..], q), |b, q| set_fifths(&mut b[2..], q), None;
    Q5_1 32 true linear(0, 0, 31), half_and_minimum, |b, q| fifths(&b[4..], q), |b, q| set_fifths(&mut b[4..], q), None;
    // -128 is left out, as ggml leaves it out: some kernels negate codes in 8 bits.
    Q8_0 32 false linear(128, 1, 255), |b, s, _| s[0] = half(b, 0), read_q8_0, write_q8_0, None;
    Q2_K 16 true linear(0, 0, 3), q2_k_scales, |b, q| pairs(&b[16..80], q), |b, q| set_pairs(&mut b[16..80], q), None;
    Q3_K 16 false linear(4, 0, 7), q3_k_scales, read_q3_k, write_q3_k, None;
    Q4_K 32 true linear(0, 0, 15), q4_k_scales, |b, q| nibbles(&b[16..], q), |b, q| set_nibbles(&mut b[16..], q), None;
    Q5_K 32 true linear(0, 0, 31), q4_k_scales, read_q5_k, write_q5_k, None;
    Q6_K 16 false linear(32, 0, 63), q6_k_scales, read_q6_k, write_q6_k, None;
    TQ2_0 256 false linear(1, 0, 2), |b, s, _| s[0] = half(b, 64), |b, q| pairs(&b[..64], q), |b, q| set_pairs(&mut b[..64], q), None;
    Q2_0 64 false linear(1, 0, 3), |b, s, _| s[0] = half(b, 0), read_q2_0, write_q2_0, None;
    IQ4_NL 32 false Codes::Table(&IQ4), |b, s, _| s[0] = half(b, 0), |b, q| halves(&b[2..], q), |b, q| set_halves(&mut b[2..], q), None;
    IQ4_XS 32 false Codes::Table(&IQ4), iq4_xs_scales, read_iq4_xs, write_iq4_xs, None;
    MXFP4 32 false Codes::Table(&FP4), mxfp4_scale, |b, q| halves(&b[1..], q), |b, q| set_halves(&mut b[1..], q), None;
    IQ2_XXS 32 false book(8, 256, false, 0.125), |b, s, _| packed_scales(b, 2, 8, 4, 0.25, s), read_iq2_xxs, write_iq2_xxs, Some((|b, g| read_parity_signs(b, 2, 8, 4, g), keep_signs));
    IQ2_XS 16 false book(8, 512, false, 0.125), |b, s, _| nibble_scales(half(b, 0), &b[66..], 0.25, s), read_iq2_xs, write_iq2_xs, Some((read_iq2_xs_signs, keep_signs));
    IQ2_S 16 false book(8, 1024, true, 0.125), |b, s, _| nibble_scales(half(b, 0), &b[74..], 0.25, s), read_iq2_s, write_iq2_s, Some((|b, g| g.copy_from_slice(&b[34..66]), |b, g| b[34..66].copy_from_slice(g)));
    IQ3_XXS 32 false book(4, 256, false, 0.25), |b, s, _| packed_scales(b, 66, 4, 0, 0.5, s), read_iq3_xxs, write_iq3_xxs, Some((|b, g| read_parity_signs(b, 66, 4, 0, g), keep_signs));
    IQ3_S 32 false book(4, 512, true, 1.0), iq3_s_scales, read_iq3_s, write_iq3_s, Some((|b, g| g.copy_from_slice(&b[74..106]), |b, g| b[74..106].copy_from_slice(g)));
}

/// The quantized types that are not refined, and why.
const UNREFINED: &[(TensorType, &str)] = &[
    (
        TensorType::IQ1_S,
        "its codes share a grid of ternary vectors with a common shift, for which no refinement was measured",
    ),
    (
        TensorType::IQ1_M,
        "its codes share a grid of ternary vectors with a common shift, for which no refinement was measured",
    ),
    (
        TensorType::TQ1_0,
        "it is for ternary weights, which it stores without error",
    ),
    (
        TensorType::NVFP4,
        "its scales come from the model's training, and ggml copies them",
    ),
    (TensorType::Q1_0, "its codes are signs alone"),
    (TensorType::Q8_1, "it is for activations"),
    (TensorType::Q8_K, "it is for activations"),
];

fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Q4_1, Q5_1: the minimum is added, so it counts as its negative.
fn half_and_minimum(b: &[u8], s: &mut [f32], m: &mut [f32]) {
    s[0] = half(b, 0);
    m[0] = -half(b, 2);
}

/// Nibbles of 32 codes: the low ones are codes 0 to 15, the high ones 16 to 31.
fn halves(b: &[u8], q: &mut [u16]) {
    for j in 0..16 {
        q[j] = u16::from(b[j] & 15);
        q[j + 16] = u16::from(b[j] >> 4);
    }
}

fn set_halves(b: &mut [u8], q: &[u16]) {
    for j in 0..16 {
        b[j] = (q[j] | q[j + 16] << 4) as u8;
    }
}

/// 32 codes of 5 bits: a word of the high bits, then nibbles.
fn fifths(b: &[u8], q: &mut [u16]) {
    let high = word(b, 0);
    halves(&b[4..], q);
    for (j, q) in q[..32].iter_mut().enumerate() {
        *q |= ((high >> j & 1) << 4) as u16;
    }
}

fn set_fifths(b: &mut [u8], q: &[u16]) {
    let high = (0..32).fold(0_u32, |high, j| high | u32::from(q[j] >> 4 & 1) << j);
    b[..4].copy_from_slice(&high.to_le_bytes());
    for j in 0..16 {
        b[4 + j] = (q[j] & 15 | (q[j + 16] & 15) << 4) as u8;
    }
}

fn read_q8_0(b: &[u8], q: &mut [u16]) {
    for j in 0..32 {
        q[j] = (i16::from(b[2 + j].cast_signed()) + 128).cast_unsigned();
    }
}

fn write_q8_0(b: &mut [u8], q: &[u16]) {
    for j in 0..32 {
        b[2 + j] = (q[j] as u8).wrapping_sub(128);
    }
}

fn read_q2_0(b: &[u8], q: &mut [u16]) {
    for j in 0..64 {
        q[j] = u16::from(b[2 + j / 4] >> (2 * (j % 4)) & 3);
    }
}

fn write_q2_0(b: &mut [u8], q: &[u16]) {
    for (byte, q) in b[2..18].iter_mut().zip(q.chunks_exact(4)) {
        *byte = (q[0] | q[1] << 2 | q[2] << 4 | q[3] << 6) as u8;
    }
}

/// 256 codes of 2 bits: in each half, code `32 i + j` stands in bits `2 i` of byte `j`.
fn pairs(b: &[u8], q: &mut [u16]) {
    for (b, q) in b.chunks_exact(32).zip(q.chunks_exact_mut(128)) {
        for (at, q) in q.iter_mut().enumerate() {
            *q = u16::from(b[at % 32] >> (2 * (at / 32)) & 3);
        }
    }
}

fn set_pairs(b: &mut [u8], q: &[u16]) {
    for (b, q) in b.chunks_exact_mut(32).zip(q.chunks_exact(128)) {
        for (j, byte) in b.iter_mut().enumerate() {
            *byte = (q[j] & 3 | (q[j + 32] & 3) << 2 | (q[j + 64] & 3) << 4 | (q[j + 96] & 3) << 6) as u8;
        }
    }
}

/// 256 codes of 4 bits: in each quarter the low nibbles come before the high ones.
fn nibbles(b: &[u8], q: &mut [u16]) {
    for (b, q) in b.chunks_exact(32).zip(q.chunks_exact_mut(64)) {
        for j in 0..32 {
            q[j] = u16::from(b[j] & 15);
            q[j + 32] = u16::from(b[j] >> 4);
        }
    }
}

fn set_nibbles(b: &mut [u8], q: &[u16]) {
    for (b, q) in b.chunks_exact_mut(32).zip(q.chunks_exact(64)) {
        for j in 0..32 {
            b[j] = (q[j] & 15 | (q[j + 32] & 15) << 4) as u8;
        }
    }
}

fn q2_k_scales(b: &[u8], s: &mut [f32], m: &mut [f32]) {
    let (d, min) = (half(b, 80), half(b, 82));
    for j in 0..16 {
        s[j] = d * f32::from(b[j] & 15);
        m[j] = min * f32::from(b[j] >> 4);
    }
}

fn q3_k_scales(b: &[u8], s: &mut [f32], _: &mut [f32]) {
    let (d, packed) = (half(b, 108), &b[96..108]);
    for (j, s) in s[..16].iter_mut().enumerate() {
        let low = if j < 8 { packed[j] & 15 } else { packed[j - 8] >> 4 };
        let high = packed[8 + j % 4] >> (2 * (j / 4)) & 3;
        *s = d * (f32::from(low | high << 4) - 32.0);
    }
}

fn read_q3_k(b: &[u8], q: &mut [u16]) {
    pairs(&b[32..96], q);
    for (at, q) in q[..256].iter_mut().enumerate() {
        *q |= u16::from(b[at % 32] >> (at / 32) & 1) << 2;
    }
}

fn write_q3_k(b: &mut [u8], q: &[u16]) {
    set_pairs(&mut b[32..96], q);
    for (j, byte) in b[..32].iter_mut().enumerate() {
        *byte = (0..8).fold(0, |high, i| high | ((q[32 * i + j] >> 2 & 1) << i) as u8);
    }
}

/// Q4_K and Q5_K: 6 bits for each scale and each minimum.
fn q4_k_scales(b: &[u8], s: &mut [f32], m: &mut [f32]) {
    let (d, min, p) = (half(b, 0), half(b, 2), &b[4..16]);
    for j in 0..8 {
        let (scale, minimum) = if j < 4 {
            (p[j] & 63, p[j + 4] & 63)
        } else {
            (p[j + 4] & 15 | p[j - 4] >> 6 << 4, p[j + 4] >> 4 | p[j] >> 6 << 4)
        };
        s[j] = d * f32::from(scale);
        m[j] = min * f32::from(minimum);
    }
}

fn read_q5_k(b: &[u8], q: &mut [u16]) {
    nibbles(&b[48..], q);
    for (at, q) in q[..256].iter_mut().enumerate() {
        *q |= u16::from(b[16 + at % 32] >> (at / 32) & 1) << 4;
    }
}

fn write_q5_k(b: &mut [u8], q: &[u16]) {
    set_nibbles(&mut b[48..], q);
    for (j, byte) in b[16..48].iter_mut().enumerate() {
        *byte = (0..8).fold(0, |high, i| high | ((q[32 * i + j] >> 4 & 1) << i) as u8);
    }
}

fn q6_k_scales(b: &[u8], s: &mut [f32], _: &mut [f32]) {
    let d = half(b, 208);
    for j in 0..16 {
        s[j] = d * f32::from(b[192 + j].cast_signed());
    }
}

fn read_q6_k(b: &[u8], q: &mut [u16]) {
    let (low, high) = (&b[..128], &b[128..192]);
    for (at, q) in q[..256].iter_mut().enumerate() {
        // In each half: four runs of 32.
        let (part, run, l) = (at / 128, at % 128 / 32, at % 32);
        let nibble = low[64 * part + 32 * (run % 2) + l] >> (4 * (run / 2)) & 15;
        *q = u16::from(nibble | (high[32 * part + l] >> (2 * run) & 3) << 4);
    }
}

fn write_q6_k(b: &mut [u8], q: &[u16]) {
    for part in 0..2 {
        let q = &q[128 * part..];
        for l in 0..32 {
            for run in 0..2 {
                b[64 * part + 32 * run + l] = (q[32 * run + l] & 15 | (q[64 + 32 * run + l] & 15) << 4) as u8;
            }
            b[128 + 32 * part + l] = (0..4).fold(0, |high, run| high | ((q[32 * run + l] >> 4 & 3) << (2 * run)) as u8);
        }
    }
}

fn iq4_xs_scales(b: &[u8], s: &mut [f32], _: &mut [f32]) {
    let (d, high) = (half(b, 0), u16::from_le_bytes([b[2], b[3]]));
    for j in 0..8 {
        let scale = u16::from(b[4 + j / 2] >> (4 * (j % 2)) & 15) | (high >> (2 * j) & 3) << 4;
        s[j] = d * (f32::from(scale) - 32.0);
    }
}

fn read_iq4_xs(b: &[u8], q: &mut [u16]) {
    for (b, q) in b[8..].chunks_exact(16).zip(q.chunks_exact_mut(32)) {
        halves(b, q);
    }
}

fn write_iq4_xs(b: &mut [u8], q: &[u16]) {
    for (b, q) in b[8..].chunks_exact_mut(16).zip(q.chunks_exact(32)) {
        set_halves(b, q);
    }
}

/// Half of the power of two that the byte stands for, because the table is doubled.
fn mxfp4_scale(b: &[u8], s: &mut [f32], _: &mut [f32]) {
    let e = u32::from(b[0]);
    s[0] = f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e - 1) << 23 });
}

/// Scales in the high 4 bits of words, one for 32 columns; the words are `stride` bytes apart.
fn packed_scales(b: &[u8], start: usize, stride: usize, offset: usize, factor: f32, s: &mut [f32]) {
    let d = half(b, 0);
    for (j, s) in s[..8].iter_mut().enumerate() {
        *s = d * (0.5 + (word(b, start + stride * j + offset) >> 28) as f32) * factor;
    }
}

fn nibble_scales(d: f32, b: &[u8], factor: f32, s: &mut [f32]) {
    for (j, s) in s[..16].iter_mut().enumerate() {
        *s = d * (0.5 + f32::from(b[j / 2] >> (4 * (j % 2)) & 15)) * factor;
    }
}

fn iq3_s_scales(b: &[u8], s: &mut [f32], _: &mut [f32]) {
    let d = half(b, 0);
    for (j, s) in s[..8].iter_mut().enumerate() {
        *s = d * (1.0 + 2.0 * f32::from(b[106 + j / 2] >> (4 * (j % 2)) & 15));
    }
}

/// Returns the 8 signs of an index of 7 bits: the eighth makes their number even.
fn parity_signs(index: u32) -> u8 {
    let low = (index & 127) as u8;
    low | ((low.count_ones() & 1) as u8) << 7
}

fn read_parity_signs(b: &[u8], start: usize, stride: usize, offset: usize, signs: &mut [u8]) {
    for (at, signs) in signs.iter_mut().enumerate() {
        *signs = parity_signs(word(b, start + stride * (at / 4) + offset) >> (7 * (at % 4)));
    }
}

/// The signs of types whose signs have even parity are never changed.
fn keep_signs(_: &mut [u8], _: &[u8]) {}

fn read_iq2_xxs(b: &[u8], q: &mut [u16]) {
    for (at, q) in q[..32].iter_mut().enumerate() {
        *q = u16::from(b[2 + 8 * (at / 4) + at % 4]);
    }
}

fn write_iq2_xxs(b: &mut [u8], q: &[u16]) {
    for (at, q) in q[..32].iter().enumerate() {
        b[2 + 8 * (at / 4) + at % 4] = *q as u8;
    }
}

fn read_iq2_xs(b: &[u8], q: &mut [u16]) {
    for (b, q) in b[2..66].chunks_exact(2).zip(q) {
        *q = u16::from_le_bytes([b[0], b[1]]) & 511;
    }
}

fn write_iq2_xs(b: &mut [u8], q: &[u16]) {
    for (b, q) in b[2..66].chunks_exact_mut(2).zip(q) {
        b[0] = *q as u8;
        b[1] = b[1] & 0xfe | (q >> 8) as u8;
    }
}

fn read_iq2_xs_signs(b: &[u8], signs: &mut [u8]) {
    for (b, signs) in b[2..66].chunks_exact(2).zip(signs) {
        *signs = parity_signs(u32::from(b[1] >> 1));
    }
}

fn read_iq2_s(b: &[u8], q: &mut [u16]) {
    for (at, q) in q[..32].iter_mut().enumerate() {
        *q = u16::from(b[2 + at]) | u16::from(b[66 + at / 4] >> (2 * (at % 4)) & 3) << 8;
    }
}

fn write_iq2_s(b: &mut [u8], q: &[u16]) {
    for (at, q) in q[..32].iter().enumerate() {
        b[2 + at] = *q as u8;
    }
    for (high, q) in b[66..74].iter_mut().zip(q.chunks_exact(4)) {
        *high = (0..4).fold(0, |high, i| high | ((q[i] >> 8) << (2 * i)) as u8);
    }
}

fn read_iq3_xxs(b: &[u8], q: &mut [u16]) {
    for (b, q) in b[2..66].iter().zip(q) {
        *q = u16::from(*b);
    }
}

fn write_iq3_xxs(b: &mut [u8], q: &[u16]) {
    for (b, q) in b[2..66].iter_mut().zip(q) {
        *b = *q as u8;
    }
}

fn read_iq3_s(b: &[u8], q: &mut [u16]) {
    for (at, q) in q[..64].iter_mut().enumerate() {
        *q = u16::from(b[2 + at]) | u16::from(b[66 + at / 8] >> (at % 8) & 1) << 8;
    }
}

fn write_iq3_s(b: &mut [u8], q: &[u16]) {
    for (at, q) in q[..64].iter().enumerate() {
        b[2 + at] = *q as u8;
    }
    for (high, q) in b[66..74].iter_mut().zip(q.chunks_exact(8)) {
        *high = (0..8).fold(0, |high, i| high | ((q[i] >> 8) << i) as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_refined_or_has_a_reason() {
        for ty in TensorType::ALL {
            let reason = UNREFINED.iter().any(|(other, _)| other == ty);
            assert_eq!(
                codec(*ty).is_some() || reason,
                ty.is_quantized(),
                "{ty} has neither a codec nor a reason, or both are for a type that is not quantized"
            );
            assert!(!(codec(*ty).is_some() && reason), "{ty}");
            assert_eq!(codec(*ty).is_none(), why_not_refined(*ty).is_some());
        }
    }

    #[test]
    fn what_is_written_is_read_and_nothing_else_changes() {
        let mut state = 1_u64;
        let mut random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u32
        };
        for codec in CODECS {
            let most = match codec.codes {
                Codes::Linear { most, .. } => most as u32 + 1,
                Codes::Table(_) => 16,
                Codes::Codebook(book) => book.entries as u32,
            };
            for _ in 0..50 {
                let before: Vec<u8> = (0..codec.bytes()).map(|_| random() as u8).collect();
                let codes: Vec<u16> = (0..codec.codes_per_block()).map(|_| (random() % most) as u16).collect();
                let mut after = before.clone();
                (codec.write_codes)(&mut after, &codes);
                let mut read = vec![0; codes.len()];
                (codec.read_codes)(&after, &mut read);
                assert_eq!(read, codes, "{}", codec.ty);
                let scales = |bytes: &[u8]| {
                    let (mut s, mut m) = ([0.0_f32; 16], [0.0_f32; 16]);
                    (codec.read_scales)(bytes, &mut s, &mut m);
                    (s.map(f32::to_bits), m.map(f32::to_bits))
                };
                assert_eq!(scales(&after), scales(&before), "{}", codec.ty);
                if let Some((read, write)) = codec.signs {
                    let signs = |bytes: &[u8]| {
                        let mut signs = [0; 32];
                        read(bytes, &mut signs);
                        signs
                    };
                    assert_eq!(signs(&after), signs(&before), "{}", codec.ty);
                    let mut same = after.clone();
                    write(&mut same, &signs(&after));
                    assert_eq!(same, after, "{}", codec.ty);
                }
                // The codes that were there, written again, leave the block as it was.
                (codec.read_codes)(&before, &mut read);
                (codec.write_codes)(&mut after, &read);
                assert_eq!(after, before, "{}", codec.ty);
            }
        }
    }
}
