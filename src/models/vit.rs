//! Vision transformers (Dosovitskiy et al. 2021, arXiv:2010.11929) by timm's keys, with what later
//! models added: register tokens (Darcet et al. 2024), LayerScale, SwiGLU, normalised queries and
//! keys, and CONCH's attention pooling. Everything a weight can tell is read from the weights.

use super::layers::Builder;
use super::position;
use crate::error::{Error, Result};
use crate::graph::{Act, Dense, Epilogue, Op, ParamId, Shape, TensorId, Window};
use crate::recipe::{TokenPool, Vit};
use half::f16;

/// Patches, blocks, and the pooling of their tokens to one vector.
pub fn build(
    builder: &mut Builder<'_>,
    pixels: TensorId,
    vit: &Vit,
    mean: [f32; 3],
    std: [f32; 3],
) -> Result<TensorId> {
    let wants_class = matches!(vit.pool, TokenPool::Class | TokenPool::ClassMean);
    if wants_class && !builder.weights.has("cls_token") {
        return Err(Error::weights("pool = \"class\", but there is no cls_token"));
    }
    let (mut x, prefix) = tokens(builder, pixels, vit, mean, std)?;
    if builder.weights.has("norm_pre.weight") {
        x = layer_norm(builder, x, "norm_pre", vit.eps, 1)?;
    }
    let mut depth = 0;
    while builder.weights.has(&format!("blocks.{depth}.norm1.weight")) {
        x = block(builder, x, &format!("blocks.{depth}"), vit)?;
        depth += 1;
    }
    if depth == 0 {
        builder.weights.take("blocks.0.norm1.weight")?;
    }
    pool(builder, x, prefix, vit)
}

/// The class token, register tokens and embedded patches, and how many stand before the patches.
fn tokens(
    builder: &mut Builder<'_>,
    pixels: TensorId,
    vit: &Vit,
    mean: [f32; 3],
    std: [f32; 3],
) -> Result<(TensorId, usize)> {
    let Builder { graph, weights, .. } = builder;
    let file = weights.take("patch_embed.proj.weight")?;
    let &[width, 3, side, across] = file.shape else {
        return Err(weights.misfit(&file, "[D, 3, P, P]"));
    };
    if side != across || side == 0 {
        return Err(weights.misfit(&file, "square patches"));
    }
    let weight = weights.conv(graph, "patch_embed.proj.weight", [side; 2])?;
    // The pixels of a patch lie in the order (r, s, c) of the filter.
    graph.params[weight.0].shape = vec![width, 1, 1, 3 * side * side];
    let bias = weights.optional_vector(graph, "patch_embed.proj.bias")?;
    let patches = graph.push(Op::Patches { mean, std, side }, &[pixels])?;
    let epilogue = Epilogue { bias, ..Default::default() };
    let window = Window::square(1, 1, 0);
    let map = graph.push(Op::Conv2d { weight, window, epilogue }, &[patches])?;
    let Shape::Map { h: grid, .. } = graph.shape(map) else { unreachable!("a convolution") };

    let mut prefix = Vec::new();
    for name in ["cls_token", "reg_token"] {
        if builder.weights.has(name) {
            prefix.extend(table(builder, name, width)?);
        }
    }
    let count = prefix.len() / width;
    let position = positions(builder, &mut prefix, [width, grid], vit)?;
    let graph = &mut builder.graph;
    let prefix = match count {
        0 => None,
        _ => Some(graph.param_f32("prefix tokens", &[count, width], prefix)?),
    };
    Ok((graph.push(Op::Embed { prefix, position }, &[map])?, count))
}

/// The position embedding of the patches at the recipe's input size; what it holds for class and
/// register tokens is added to them.
fn positions(
    builder: &mut Builder<'_>,
    prefix: &mut [f32],
    [width, grid]: [usize; 2],
    vit: &Vit,
) -> Result<Option<ParamId>> {
    if !builder.weights.has("pos_embed") {
        return Ok(None);
    }
    let embedding = table(builder, "pos_embed", width)?;
    let (rows, tokens) = (embedding.len() / width, prefix.len() / width);
    // Checkpoints cover the patches alone, the class token too, or all tokens.
    let square = |n: usize| Some(n.isqrt()).filter(|side| side * side == n && n > 0);
    let covered: Vec<(usize, usize)> = [0, 1, tokens]
        .into_iter()
        .filter(|&n| n <= tokens && n <= rows)
        .filter_map(|n| Some((n, square(rows - n)?)))
        .collect();
    let exact = covered.iter().find(|(_, side)| *side == grid);
    let Some(&(own, side)) = exact.or(covered.last()) else {
        return Err(Error::weights(format!(
            "pos_embed covers {rows} tokens: not a square of patches and {tokens} tokens before it"
        )));
    };
    prefix.iter_mut().zip(&embedding[..own * width]).for_each(|(p, e)| *p += e);
    let patches = position::resize(&embedding[own * width..], side, grid, vit.position);
    builder.graph.param_f32("pos_embed", &[grid * grid, width], patches).map(Some)
}

/// A tensor `[.., width]` whose leading dimensions but one are 1.
fn table(builder: &mut Builder<'_>, name: &str, width: usize) -> Result<Vec<f32>> {
    let tensor = builder.weights.take(name)?;
    let leading = tensor.shape.split_last().filter(|(last, _)| **last == width).map(|(_, l)| l);
    let plain = |l: &[usize]| l.iter().filter(|&&n| n != 1).count() <= 1;
    if !leading.is_some_and(plain) || tensor.is_empty() {
        return Err(builder.weights.misfit(&tensor, &format!("[1, _, {width}]")));
    }
    tensor.to_f32()
}

/// `x + ls1(attention(norm1(x)))`, then `x + ls2(mlp(norm2(x)))`.
fn block(builder: &mut Builder<'_>, x: TensorId, name: &str, vit: &Vit) -> Result<TensorId> {
    let y = layer_norm(builder, x, &format!("{name}.norm1"), vit.eps, 1)?;
    let y = attention(builder, y, &format!("{name}.attn"), vit)?;
    let x = residual(builder, y, x, &format!("{name}.attn.proj"), &format!("{name}.ls1.gamma"))?;

    let y = layer_norm(builder, x, &format!("{name}.norm2"), vit.eps, 1)?;
    let first = if builder.weights.has(&format!("{name}.mlp.gate.weight")) {
        stacked(builder, &["gate", "value"].map(|part| format!("{name}.mlp.{part}")))?
    } else {
        builder.weights.dense(&mut builder.graph, &format!("{name}.mlp.fc1"))?
    };
    let hidden = builder.graph.param(first.weight).shape[0];
    let second = builder.weights.take(&format!("{name}.mlp.fc2.weight"))?;
    let gated = second.shape.get(1) == Some(&(hidden / 2));
    let Dense { weight, bias } = first;
    let op = if gated {
        Op::GatedLinear { weight, bias, act: Act::Silu }
    } else {
        Op::Linear { weight, epilogue: Epilogue { bias, act: Act::Gelu, ..Default::default() } }
    };
    let y = builder.graph.push(op, &[y])?;
    residual(builder, y, x, &format!("{name}.mlp.fc2"), &format!("{name}.ls2.gamma"))
}

fn attention(builder: &mut Builder<'_>, x: TensorId, name: &str, vit: &Vit) -> Result<TensorId> {
    let qkv = if builder.weights.has(&format!("{name}.q.weight")) {
        stacked(builder, &["q", "k", "v"].map(|part| format!("{name}.{part}")))?
    } else {
        builder.weights.dense(&mut builder.graph, &format!("{name}.qkv"))?
    };
    let epilogue = Epilogue { bias: qkv.bias, ..Default::default() };
    let mut packed = builder.graph.push(Op::Linear { weight: qkv.weight, epilogue }, &[x])?;
    if builder.weights.has(&format!("{name}.q_norm.weight")) {
        let c = builder.graph.shape(packed).channels() / 3;
        let normed = builder.graph.tensor(builder.graph.shape(packed));
        for (i, norm) in ["q_norm", "k_norm"].iter().enumerate() {
            let part = builder.graph.slice(packed, i * c, c)?;
            let op = norm_op(builder, &format!("{name}.{norm}"), vit.eps, vit.heads)?;
            builder.graph.push_into(op, &[part], normed, i * c)?;
        }
        let values = builder.graph.slice(packed, 2 * c, c)?;
        builder.graph.push_into(Op::Copy, &[values], normed, 2 * c)?;
        packed = normed;
    }
    builder.graph.push(Op::Attention { heads: vit.heads, queries: None }, &[packed])
}

/// Several linear layers of one input as one: their filters one after the other.
fn stacked(builder: &mut Builder<'_>, names: &[String]) -> Result<Dense> {
    let Builder { graph, weights, .. } = builder;
    let (mut filters, mut biases, mut shape) = (Vec::new(), Vec::new(), [0, 0]);
    for name in names {
        let tensor = weights.take(&format!("{name}.weight"))?;
        let &[k, c] = tensor.shape else {
            return Err(weights.misfit(&tensor, "[K, C]"));
        };
        if shape[0] > 0 && shape[1] != c {
            return Err(weights.misfit(&tensor, &format!("[K, {}]", shape[1])));
        }
        shape = [shape[0] + k, c];
        filters.extend(tensor.to_f16()?.data);
        // Some models give keys no bias beside biased queries and values.
        let bias = format!("{name}.bias");
        biases.extend(if weights.has(&bias) { weights.vector(&bias)? } else { vec![0.0; k] });
    }
    let weight = graph.param_f16(&names.join(" + "), &shape, filters)?;
    Ok(Dense { weight, bias: Some(graph.param_f32("bias", &[biases.len()], biases)?) })
}

/// `x + gamma * linear(y)`, absent gamma meaning 1 (LayerScale, Touvron et al. 2021,
/// arXiv:2103.17239).
fn residual(
    builder: &mut Builder<'_>,
    y: TensorId,
    x: TensorId,
    name: &str,
    gamma: &str,
) -> Result<TensorId> {
    let Builder { graph, weights, .. } = builder;
    let Dense { weight, mut bias } = weights.dense(graph, name)?;
    let mut scale = None;
    if weights.has(gamma) {
        let gamma_data = weights.vector(gamma)?;
        if let Some(id) = bias {
            let scaled = match &graph.param(id).data {
                crate::graph::ParamData::F32(b) if b.len() == gamma_data.len() => {
                    b.iter().zip(&gamma_data).map(|(b, g)| b * g).collect()
                }
                _ => return Err(Error::weights(format!("{gamma} is not as long as {name}.bias"))),
            };
            bias = Some(graph.param_f32(&format!("{name}.bias"), &[gamma_data.len()], scaled)?);
        }
        scale = Some(graph.param_f32(gamma, &[gamma_data.len()], gamma_data)?);
    }
    let epilogue = Epilogue { scale, bias, residual: Some(x), act: Act::None };
    graph.push(Op::Linear { weight, epilogue }, &[y])
}

fn norm_op(builder: &mut Builder<'_>, name: &str, eps: f32, groups: usize) -> Result<Op> {
    let Builder { graph, weights, .. } = builder;
    let gamma = weights.vector(&format!("{name}.weight"))?;
    let gamma = graph.param_f32(&format!("{name}.weight"), &[gamma.len()], gamma)?;
    let beta = weights.optional_vector(graph, &format!("{name}.bias"))?;
    Ok(Op::LayerNorm { gamma, beta, eps, groups })
}

fn layer_norm(
    builder: &mut Builder<'_>,
    x: TensorId,
    name: &str,
    eps: f32,
    groups: usize,
) -> Result<TensorId> {
    let op = norm_op(builder, name, eps, groups)?;
    builder.graph.push(op, &[x])
}

/// One vector for each row of tokens.
fn pool(builder: &mut Builder<'_>, x: TensorId, prefix: usize, vit: &Vit) -> Result<TensorId> {
    let Shape::Tokens { t, c } = builder.graph.shape(x) else { unreachable!("tokens") };
    let class = Op::TokenMean { start: 0, count: 1 };
    let patches = Op::TokenMean { start: prefix, count: t - prefix };
    let has_norm = builder.weights.has("norm.weight");
    let normed = |builder: &mut Builder<'_>, x| match has_norm {
        true => layer_norm(builder, x, "norm", vit.eps, 1),
        false => Ok(x),
    };
    let pooled = match vit.pool {
        // A norm of one token needs no other: pooled first, it is cheaper.
        TokenPool::Class => {
            let token = builder.graph.push(class, &[x])?;
            normed(builder, token)?
        }
        TokenPool::Mean => {
            let x = normed(builder, x)?;
            builder.graph.push(patches, &[x])?
        }
        TokenPool::ClassMean => {
            let x = normed(builder, x)?;
            let both = builder.graph.tensor(Shape::Tokens { t: 1, c: 2 * c });
            builder.graph.push_into(class, &[x], both, 0)?;
            builder.graph.push_into(patches, &[x], both, c)?;
            both
        }
        TokenPool::Attention => {
            let x = normed(builder, x)?;
            attention_pool(builder, x, vit)?
        }
    };
    match builder.weights.has("fc_norm.weight") {
        true => layer_norm(builder, pooled, "fc_norm", vit.eps, 1),
        false => Ok(pooled),
    }
}

/// Attention of learnt queries over all tokens: `ln(out(attention(q, k(ln_k x), v(ln_k x))))` with
/// `q = W_q ln_q(query) + b_q`, which no input changes and which is therefore computed here. The
/// keys are those of `torch.nn.MultiheadAttention` with keys of another width than queries.
fn attention_pool(builder: &mut Builder<'_>, x: TensorId, vit: &Vit) -> Result<TensorId> {
    // Layer norms of this part have PyTorch's default.
    const EPS: f32 = 1e-5;
    let heads = vit.pool_heads.unwrap_or(1);
    let x = layer_norm(builder, x, "attn_pool.ln_k", EPS, 1)?;
    let queries = queries(builder, EPS)?;
    let Builder { graph, weights, .. } = builder;
    let width = graph.param(queries).shape[1];
    let mut filters = Vec::new();
    let c = graph.shape(x).channels();
    for part in ["k", "v"] {
        let tensor = weights.take(&format!("attn_pool.attn.{part}_proj_weight"))?;
        if tensor.shape != [width, c] {
            return Err(weights.misfit(&tensor, &format!("[{width}, {c}]")));
        }
        filters.extend(tensor.to_f16()?.data);
    }
    let weight = graph.param_f16("attn_pool.attn keys and values", &[2 * width, c], filters)?;
    let bias = weights.vector("attn_pool.attn.in_proj_bias")?[width..].to_vec();
    let bias = Some(graph.param_f32("attn_pool.attn.in_proj_bias", &[2 * width], bias)?);
    let epilogue = Epilogue { bias, ..Default::default() };
    let packed = graph.push(Op::Linear { weight, epilogue }, &[x])?;
    let pooled = graph.push(Op::Attention { heads, queries: Some(queries) }, &[packed])?;
    let out = weights.dense(graph, "attn_pool.attn.out_proj")?;
    let epilogue = Epilogue { bias: out.bias, ..Default::default() };
    let pooled = graph.push(Op::Linear { weight: out.weight, epilogue }, &[pooled])?;
    // Further queries serve captions.
    let first = graph.push(Op::TokenMean { start: 0, count: 1 }, &[pooled])?;
    layer_norm(builder, first, "attn_pool.ln_out", EPS, 1)
}

/// The projected queries, `[Q, D]`.
fn queries(builder: &mut Builder<'_>, eps: f32) -> Result<ParamId> {
    let Builder { graph, weights, .. } = builder;
    let query = weights.take("attn_pool.query")?;
    let &[count, width] = query.shape else {
        return Err(weights.misfit(&query, "[Q, D]"));
    };
    let query = query.to_f32()?;
    let [gamma, beta] = ["weight", "bias"].map(|p| weights.vector(&format!("attn_pool.ln_q.{p}")));
    let (gamma, beta) = (gamma?, beta?);
    let projection = weights.take("attn_pool.attn.q_proj_weight")?;
    if projection.shape != [width, width] {
        return Err(weights.misfit(&projection, &format!("[{width}, {width}]")));
    }
    let projection = projection.to_f32()?;
    let bias = weights.vector("attn_pool.attn.in_proj_bias")?;
    if gamma.len() != width || beta.len() != width || bias.len() != 3 * width {
        return Err(Error::weights(format!("attn_pool: its vectors do not fit {width} channels")));
    }
    let mut projected = Vec::with_capacity(count * width);
    for row in query.chunks_exact(width.max(1)) {
        let wide = || row.iter().map(|&x| f64::from(x));
        let mean = wide().sum::<f64>() / width as f64;
        let variance = wide().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
        let unit = |i: usize| (f64::from(row[i]) - mean) / (variance + f64::from(eps)).sqrt();
        let normed: Vec<f64> =
            (0..width).map(|i| unit(i) * f64::from(gamma[i]) + f64::from(beta[i])).collect();
        for (k, filter) in projection.chunks_exact(width).enumerate() {
            let sum: f64 = filter.iter().zip(&normed).map(|(&w, x)| f64::from(w) * x).sum();
            projected.push(f16::from_f64(sum + f64::from(bias[k])));
        }
    }
    graph.param_f16("attn_pool.query", &[count, width], projected)
}
