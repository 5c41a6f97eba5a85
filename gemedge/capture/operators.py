"""The operators that a torch.export graph may name: pure tensor functions, and arithmetic on sizes.

The list is the core ATen opset, what torch.onnx translates and what decomposes into these. Left out on
purpose: operators that touch files (from_file), that rewrite memory (set_, resize_, as_strided_), gradients,
sparse, quantized and complex ones.
"""

import re

from gemedge.errors import ModelError, UnsupportedError


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ATEN = _words(
    """
    __and__ __lshift__ __or__ __rshift__ __xor__ _adaptive_avg_pool2d _adaptive_avg_pool3d _assert_async
    _assert_scalar _assert_tensor_metadata _cdist_forward _convolution _embedding_bag _embedding_bag_forward_only
    _fused_rms_norm _local_scalar_dense _log_softmax _native_batch_norm_legit _native_batch_norm_legit_functional
    _native_batch_norm_legit_no_training _prelu_kernel _reshape_alias _safe_softmax
    _scaled_dot_product_attention_math _scaled_dot_product_efficient_attention
    _scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu _softmax _to_copy
    _unsafe_index _unsafe_view _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact1d
    _upsample_nearest_exact2d _upsample_nearest_exact3d _weight_norm _weight_norm_interface abs absolute acos acosh
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d add addbmm
    addcdiv addcmul addmm addmv addr affine_grid_generator alias all alpha_dropout amax amin aminmax any arange
    arccos arccosh arcsin arcsinh arctan arctan2 arctanh argmax argmin argsort as_strided asin asinh atan atan2
    atanh atleast_1d atleast_2d atleast_3d avg_pool1d avg_pool2d avg_pool3d baddbmm batch_norm bernoulli bilinear
    bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor block_diag bmm
    broadcast_tensors broadcast_to cat cdist ceil celu channel_shuffle chunk clamp clamp_max clamp_min clip clone
    col2im column_stack concat concatenate constant_pad_nd contiguous conv1d conv2d conv3d conv_transpose1d
    conv_transpose2d conv_transpose3d convolution copy cos cosh cosine_similarity count_nonzero cross cumprod cumsum
    deg2rad detach diag diag_embed diagonal diagonal_copy diff div divide dot dropout dstack einsum elu embedding
    embedding_bag empty empty_like eq equal erf erfc erfinv exp exp2 expand expand_as expm1 eye feature_dropout fill
    fix flatten flip fliplr flipud float_power floor floor_divide fmax fmin fmod frac full full_like gather ge gelu
    glu greater greater_equal grid_sampler grid_sampler_2d grid_sampler_3d group_norm gru gru_cell gt hardshrink
    hardsigmoid hardswish hardtanh heaviside hstack im2col index index_add index_copy index_fill index_put
    index_select inner instance_norm isclose isfinite isin isinf isnan isneginf isposinf item layer_norm le
    leaky_relu lerp less less_equal lift_fresh_copy linalg_cross linalg_det linalg_inv linalg_matmul linalg_norm
    linalg_vector_norm linear linspace log log10 log1p log2 log_sigmoid log_softmax logaddexp logaddexp2
    logcumsumexp logical_and logical_not logical_or logical_xor logit logspace logsumexp lstm lstm_cell lt mH mT
    masked_fill masked_scatter matmul max max_pool1d max_pool1d_with_indices max_pool2d max_pool2d_with_indices
    max_pool3d max_pool3d_with_indices maximum mean meshgrid min minimum mish mm moveaxis movedim mul multiply mv
    nan_to_num nanmean nansum narrow native_batch_norm native_dropout native_group_norm native_layer_norm ne neg
    negative new_empty new_full new_ones new_zeros nonzero norm normal numpy_T one_hot ones ones_like outer pad
    pairwise_distance permute pixel_shuffle pixel_unshuffle positive pow prelu prod rad2deg rand rand_like randint
    randn randn_like ravel reciprocal reflection_pad1d reflection_pad2d reflection_pad3d relu relu6 remainder
    renorm repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape reshape_as
    resolve_conj resolve_neg rms_norm rnn_relu rnn_tanh roll rot90 round rrelu rsqrt rsub scalar_tensor
    scaled_dot_product_attention scatter scatter_add scatter_reduce select select_copy select_scatter selu sgn
    sigmoid sign signbit silu sin sinc sinh size slice slice_copy slice_scatter softmax softplus softshrink sort
    special_erf special_erfc special_expit special_expm1 special_log1p special_log_softmax special_softmax split
    split_copy split_with_sizes split_with_sizes_copy sqrt square squeeze squeeze_copy stack std std_mean sub
    subtract sum swapaxes swapdims sym_constrain_range sym_constrain_range_for_size sym_is_contiguous sym_numel
    sym_size sym_storage_offset sym_stride t take take_along_dim tan tanh tensor tensor_split tensordot threshold
    tile to topk trace transpose transpose_copy tril triu true_divide trunc type_as unbind unflatten unfold
    unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze unsqueeze_copy upsample_bicubic2d
    upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_trilinear3d var var_mean view view_as view_copy vstack where xlogy zero zeros zeros_like
    """
)
_NO_INPLACE = frozenset({"as_strided"})
_PRIMS = _words(
    """
    abs acos acosh add asin asinh atan atanh broadcast_in_dim ceil convert_element_type cos cosh div eq erf exp
    floor ge gt le log lt mul ne neg pow remainder reshape round sin sinh sqrt squeeze sub sum tan tanh transpose
    var where
    """
)
_ON_SIZES = _words(
    """
    _operator.eq _operator.ne _operator.le _operator.ge _operator.lt _operator.gt _operator.neg _operator.pos
    _operator.mul _operator.add _operator.sub _operator.floordiv _operator.mod _operator.pow _operator.truediv
    _operator.and_ _operator.or_ math.trunc torch.sym_not torch.sym_int torch.sym_float torch.sym_ite torch.sym_max
    torch.sym_min torch.sym_sqrt
    """
)
_WITH_GRAPHS = _words("torch.ops.higher_order.cond torch.ops.higher_order.wrap_with_set_grad_enabled")
_OVERLOAD = re.compile(r"torch\.ops\.(\w+)\.(\w+)\.(\w+)", re.ASCII)


def check_operator(target: object) -> str:
    """The target itself. ModelError where it is no operator at all, UnsupportedError where it is not in the list."""
    if type(target) is not str or len(target) > 200 or not target.isprintable():
        raise ModelError("it has a node whose operator is no name")
    if target in _ON_SIZES or target in _WITH_GRAPHS:
        return target
    overload = _OVERLOAD.fullmatch(target)
    if overload is None:
        raise ModelError(f"it names {target!r} as an operator; operators are as torch.ops.aten.relu.default")
    namespace, name, _ = overload.groups()
    if not _is_allowed(namespace, name):
        raise UnsupportedError(f"it uses the operator {namespace}.{name}, which gemedge does not read")
    return target


def _is_allowed(namespace: str, name: str) -> bool:
    match namespace:
        case "gemedge":
            return True  # its operators are registered by gemedge.nn alone
        case "prims":
            return name in _PRIMS
        case "aten":
            in_place = name.removesuffix("_")
            return name in _ATEN or (in_place in _ATEN - _NO_INPLACE and not name.endswith("__"))
    return False
