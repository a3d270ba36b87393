//! What one rank has of a layer: exactly, of any rank of a layout; and in closed form, of the
//! busiest rank of some degrees, which is what a search can afford.

use helix_layout::{
    AttentionCoord, Blocks, Degrees, Layout, LayoutSpec, ModelShape, PartialDegrees, QkvMode,
    ROW_GRANULE, Rank, Strategy, split,
};

/// One rank's share of a layer, and the sizes of the groups that it speaks in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The method.
    pub strategy: Strategy,
    /// How many ways each phase is cut.
    pub degrees: Degrees,
    /// Which shard of the sequence, and how positions are dealt to shards.
    pub kvp_index: usize,
    /// Shards and block of the sequence.
    pub blocks: Blocks,
    /// Query heads whose partial attention it computes.
    pub q_heads: usize,
    /// KV heads that it stores.
    pub kv_heads: usize,
    /// Query heads that it keeps after the merge.
    pub kept_heads: usize,
    /// Query heads whose partial outputs it hands to others.
    pub sent_heads: usize,
    /// Query heads whose projection it computes: MLA's, where they are parted.
    pub projected_heads: usize,
    /// Rows of W_q, W_k and W_v that it multiplies; values that it brings to a gather.
    pub qkv_rows: usize,
    /// The same as kernels read them: whole granules of each matrix.
    pub qkv_rows_read: usize,
    /// Whether the ranks of a KVP group part the projection and gather it.
    pub gathers: bool,
    /// Input columns of the output projection.
    pub out_cols: usize,
    /// Columns of a dense FFN.
    pub ffn_cols: usize,
    /// Columns of the shared experts.
    pub shared_cols: usize,
    /// Routed experts of its group.
    pub experts: usize,
    /// Its columns of each of them.
    pub expert_cols: usize,
    /// Rows of the LM head.
    pub vocab_rows: usize,
    /// Whether it takes part in the FFN.
    pub in_ffn: bool,
}

/// Rows as kernels read them.
pub(crate) fn padded(rows: usize) -> usize {
    rows.next_multiple_of(ROW_GRANULE)
}

impl Share {
    /// What `rank` has under `layout`.
    pub fn of(layout: &Layout, rank: Rank) -> Share {
        let (shape, spec) = (layout.shape(), layout.spec());
        let AttentionCoord { kvp, .. } = layout.attention(rank);
        let q_heads = layout.q_heads(rank).len();
        let kept_heads = layout.out_heads(rank).len();
        let rows = layout.qkv_share(rank).map(|rows| rows.len());
        let gathers = gathers(&spec);
        let latent = shape.mla.is_some();
        Share {
            strategy: spec.strategy,
            degrees: spec.degrees,
            kvp_index: kvp,
            blocks: Blocks { shards: spec.degrees.kvp, block: spec.kv_block },
            q_heads,
            kv_heads: layout.kv_heads(rank).len(),
            kept_heads,
            sent_heads: q_heads - kept_heads,
            projected_heads: layout.q_share(rank).len(),
            // What MLA's ranks gather are absorbed queries, as wide as the latent.
            qkv_rows: match latent {
                true => layout.q_share(rank).len() * shape.head_dim,
                false => rows.iter().sum(),
            },
            qkv_rows_read: match latent {
                true => 0,
                false => rows.iter().map(|&rows| padded(rows)).sum(),
            },
            gathers,
            out_cols: layout.out_cols(rank).len(),
            ffn_cols: layout.ffn_cols(rank).len(),
            shared_cols: layout.shared_cols(rank).len(),
            experts: layout.experts(rank).len(),
            expert_cols: layout.expert_cols(rank).len(),
            vocab_rows: layout.vocab_rows(rank).len(),
            in_ffn: layout.ffn(rank).is_some(),
        }
    }

    /// The most that any rank has of each thing, in closed form. The degrees need not be those of
    /// a [`Layout`], which has fewer combinations than clusters run; each must be at least 1, and
    /// where they do make one this is the maximum over its ranks, field by field.
    pub fn busiest(shape: &ModelShape, spec: &LayoutSpec) -> Share {
        let Degrees { kvp, tpa, tpf, ep, .. } = spec.degrees;
        let first = |total, parts, granule| split(total, parts, granule, 0).len();
        let (group, medha) = (shape.group(), spec.strategy == Strategy::Medha);
        let (q_heads, kv_heads) = match tpa <= shape.kv_heads {
            true => {
                let kv_heads = first(shape.kv_heads, tpa, 1);
                (kv_heads * group, kv_heads)
            }
            // Of the heads that are dealt to the fewest slices, the largest part.
            false => (first(group, tpa / shape.kv_heads, 1), 1),
        };
        let (kept_heads, fewest_kept) = match medha {
            true if kvp > 1 => (q_heads, 0),
            true => (q_heads, q_heads),
            false => (first(q_heads, kvp, 1), q_heads / kvp),
        };
        let parts = spec.degrees.ffn_ranks();
        let dense = |total, granule| first(total, parts, granule);
        let moe = shape.moe;
        let projected_heads = match (shape.mla, spec.qkv) {
            (Some(_), QkvMode::Gather) => first(q_heads, kvp, 1),
            _ => q_heads,
        };
        let (qkv_rows, qkv_rows_read) = qkv_rows(shape, spec, q_heads, kv_heads, projected_heads);
        Share {
            strategy: spec.strategy,
            degrees: spec.degrees,
            kvp_index: 0,
            blocks: Blocks { shards: kvp, block: spec.kv_block },
            q_heads,
            kv_heads,
            kept_heads,
            sent_heads: q_heads - fewest_kept,
            projected_heads,
            qkv_rows,
            qkv_rows_read,
            gathers: gathers(spec),
            out_cols: out_cols(shape, spec, kept_heads),
            ffn_cols: dense(shape.ffn, shape.ffn_block),
            shared_cols: moe.map_or(0, |moe| dense(moe.shared_ffn, moe.shared_block)),
            experts: moe.map_or(0, |moe| first(moe.experts, ep, 1)),
            expert_cols: moe.map_or(0, |moe| first(moe.ffn, tpf, moe.block)),
            vocab_rows: dense(shape.vocab, ROW_GRANULE),
            in_ffn: true,
        }
    }

    /// Ranks of one pipeline stage.
    pub fn ranks(&self) -> usize {
        self.degrees.attention_ranks()
    }

    /// How many of the positions `0..len` of a sequence it stores.
    pub fn local(&self, len: usize) -> usize {
        self.blocks.owned_before(self.kvp_index, len)
    }

    /// Sequences of `batch` that it attends to, of the fullest attention group.
    pub fn own_sequences(&self, batch: usize) -> usize {
        batch.div_ceil(self.degrees.dp)
    }
}

fn gathers(spec: &LayoutSpec) -> bool {
    spec.qkv == QkvMode::Gather && spec.degrees.kvp > 1
}

/// Values that the busiest rank brings to a gather of queries, and rows that kernels read for them.
fn qkv_rows(
    shape: &ModelShape,
    spec: &LayoutSpec,
    q_heads: usize,
    kv_heads: usize,
    projected_heads: usize,
) -> (usize, usize) {
    if shape.mla.is_some() {
        return (projected_heads * shape.head_dim, 0);
    }
    let rows = [q_heads * shape.head_dim, kv_heads * shape.head_dim, kv_heads * shape.value_dim];
    let all = rows.iter().sum::<usize>();
    if !gathers(spec) {
        return (all, rows.iter().map(|&rows| padded(rows)).sum());
    }
    let kvp = spec.degrees.kvp;
    let share = split(all, kvp, ROW_GRANULE, 0).len();
    let whole = rows.iter().all(|rows| rows.is_multiple_of(ROW_GRANULE));
    // A granule that two matrices share is read for each of them; whose it is decides the ranks,
    // so there is no shorter way than to look at each.
    let read = match whole {
        true => share,
        false => slices(shape, spec.degrees.tpa)
            .flat_map(|rows| (0..kvp).map(move |index| read_in_part(rows, kvp, index)))
            .max()
            .unwrap_or(0),
    };
    (share, read)
}

/// Rows of `[q; k; v]` that each slice of the heads has.
fn slices(shape: &ModelShape, tpa: usize) -> impl Iterator<Item = [usize; 3]> {
    let &ModelShape { kv_heads, head_dim, value_dim, .. } = shape;
    let group = shape.group();
    let heads: Vec<(usize, usize)> = match tpa <= kv_heads {
        true => [kv_heads.div_ceil(tpa), kv_heads / tpa].map(|kv| (kv * group, kv)).to_vec(),
        false => {
            let sharers = [tpa / kv_heads, tpa.div_ceil(kv_heads)];
            let parts = sharers.map(|sharers| [group.div_ceil(sharers), group / sharers]);
            parts.iter().flatten().map(|&q| (q, usize::from(q > 0))).collect()
        }
    };
    heads.into_iter().map(move |(q, kv)| [q * head_dim, kv * head_dim, kv * value_dim])
}

/// Rows that part `index` of `[q; k; v]` reads.
fn read_in_part(rows: [usize; 3], parts: usize, index: usize) -> usize {
    let part = split(rows.iter().sum(), parts, ROW_GRANULE, index);
    let mut before = 0;
    let read = rows.map(|rows| {
        let own = part.end.clamp(before, before + rows) - part.start.clamp(before, before + rows);
        before += rows;
        padded(own)
    });
    read.iter().sum()
}

/// Columns of the output projection of the rank that has most: its heads', rounded out to blocks.
fn out_cols(shape: &ModelShape, spec: &LayoutSpec, kept_heads: usize) -> usize {
    let &ModelShape { q_heads, value_dim, out_block, .. } = shape;
    if value_dim.is_multiple_of(out_block) {
        return kept_heads * value_dim;
    }
    // Heads begin anywhere in a block: the longest of all ranks' runs.
    let Degrees { kvp, tpa, .. } = spec.degrees;
    let named = PartialDegrees { kvp: Some(kvp), tpa: Some(tpa), ..Default::default() };
    let degrees = spec.strategy.complete(named, shape);
    match Layout::new(shape, LayoutSpec { degrees, ..*spec }) {
        Ok(layout) => layout.all_ranks().map(|rank| layout.out_cols(rank).len()).max().unwrap_or(0),
        Err(_) => (kept_heads * value_dim + 2 * out_block).min(q_heads * value_dim),
    }
}

#[cfg(test)]
mod tests;
