/* The operators ai.gemedge::GEM and ai.gemedge::SEGEM, version 1, as onnxruntime kernels.

   Input X, output Y of X's shape; float32, float64, or float16 computed in float32 and rounded to nearest even.
   Attributes n (1 to 16) and epsilon (positive, finite). The values have the same bits as gemedge.activation's
   (tests/test_fused_kernel.py), so this file must be built without contraction: -ffp-contract=off, never -ffast-math.

   And ai.gemedge::QuantizedGEM and QuantizedSEGEM: QuantizeLinear(GEM(DequantizeLinear(x))) of uint8 in one pass, by a
   table of all codes. Inputs x, x_scale, x_zero_point, y_scale, y_zero_point, the scales float32 and all but x one
   number each; output y. The codes are those of the three operators in float32.

   No onnxruntime header is needed. Its C ABI is a table of functions that only grows, and so does the structure
   that describes an operator: what is used of both stands in part 3, each function with its place in the table.
   Places and types are those of struct OrtApi in onnxruntime_c_api.h, of which onnxruntime asserts the last place of
   each version (101 for version 1, 218 for 12); the later ones were counted from there, and the tests call them. */

#include <float.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GLIBC__) && (defined(__clang__) ? __clang_major__ >= 14 : __GNUC__ >= 8)
#define FOR_EACH_CPU __attribute__((target_clones("avx512f", "avx2", "default"))) /* chosen when loaded */
#else
#define FOR_EACH_CPU
#endif
#define INLINE static inline __attribute__((always_inline))

/* Said before a loop from x to y: they are one array or do not overlap, so no vector loop needs to ask. */
#ifdef __clang__
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

/* 1. The activations of one number. n is a constant where they are used; without loops, every compiler vectorises. */

#define RISE s = (s + 1) * t;
#define RISE_2 RISE RISE
#define RISE_4 RISE_2 RISE_2
#define RISE_8 RISE_4 RISE_4
#define RISE_16 RISE_8 RISE_8

#define DEFINE_ACTIVATIONS(real)                                                                                \
    /* r / (1 + (epsilon / r)^(2n)) with r = max(x, 0); the power in the order of activation.even_power. */     \
    INLINE real gem_##real(real x, int n, real epsilon) {                                                       \
        const real given = x + 0, r = given < 0 ? 0 : given; /* +0 for -0; NaN stays */                         \
        const real q = epsilon / r, q2 = q * q, q4 = q2 * q2, q8 = q4 * q4, q16 = q8 * q8, q32 = q16 * q16;     \
        real power = n & 1 ? q2 : 1;                                                                            \
        power = n & 2 ? power * q4 : power;                                                                     \
        power = n & 4 ? power * q8 : power;                                                                     \
        power = n & 8 ? power * q16 : power;                                                                    \
        power = n & 16 ? power * q32 : power;                                                                   \
        return r / (1 + power);                                                                                 \
    }                                                                                                           \
                                                                                                                \
    /* max(x, 0) - epsilon * (s / (1 + s)), s = t + ... + t^(2n), t = min(max(-x, 0) / epsilon, segem_limit). */\
    INLINE real segem_##real(real x, int n, real epsilon) {                                                     \
        const real limit = (real)(UINT64_C(1) << (126 / (2 * n)));                                              \
        const real given = x + 0, opposite = -given, r = given < 0 ? 0 : given;                                 \
        const real quotient = (opposite < 0 ? 0 : opposite) / epsilon, t = quotient > limit ? limit : quotient; \
        real s = t;                                                                                             \
        RISE /* 2n - 1 times in all */                                                                          \
        if ((n - 1) & 1) { RISE_2 }                                                                             \
        if ((n - 1) & 2) { RISE_4 }                                                                             \
        if ((n - 1) & 4) { RISE_8 }                                                                             \
        if ((n - 1) & 8) { RISE_16 }                                                                            \
        return r - epsilon * (s / (1 + s));                                                                     \
    }

DEFINE_ACTIVATIONS(float)
DEFINE_ACTIVATIONS(double)

/* 2. float16, and whole ranges */

INLINE float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint32_t bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* The float32 number, infinity or NaN that a float16 code stands for; exact. */
INLINE float float_of_half(uint32_t half) {
    const uint32_t magnitude = (half & 0x7fff) << 13, sign = (half & 0x8000) << 16;
    const uint32_t rebiased = magnitude + ((127 - 15) << 23);
    const uint32_t subnormal = bits_of_float(float_of_bits(rebiased + (1 << 23)) - float_of_bits(113 << 23));
    const uint32_t special = rebiased + ((128 - 16) << 23);
    return float_of_bits(sign | (magnitude < 1 << 23 ? subnormal : magnitude >= 31 << 23 ? special : rebiased));
}

/* The float16 code nearest to a float32, ties to even; infinity from 65520; NaN keeps its top bits, made quiet. */
INLINE uint32_t half_of_float(float value) {
    const uint32_t bits = bits_of_float(value), magnitude = bits & 0x7fffffff, sign = (bits >> 16) & 0x8000;
    const uint32_t odd = (magnitude >> 13) & 1;
    const uint32_t normal = (magnitude - ((127 - 15) << 23) + 0xfff + odd) >> 13;
    const uint32_t subnormal = bits_of_float(float_of_bits(magnitude) + 0.5f) - bits_of_float(0.5f); /* + rounds */
    const uint32_t special = magnitude > 255u << 23 ? 0x7e00 | (magnitude >> 13 & 0x3ff) : 0x7c00;
    return sign | (magnitude >= 143u << 23 ? special : magnitude < 113u << 23 ? subnormal : normal);
}

typedef void Range(void *y, const void *x, size_t count, int n, float epsilon);

#define CASE(function, real, n)                                            \
    case n:                                                                \
        INDEPENDENT for (size_t i = 0; i < count; i++)                     \
            ((real *)y)[i] = function(((const real *)x)[i], n, scale);     \
        break

#define DEFINE_RANGE(function, real)                                                                         \
    FOR_EACH_CPU static void function##_range(void *y, const void *x, size_t count, int n, float epsilon) {  \
        const real scale = (real)epsilon;                                                                    \
        switch (n) {                                                                                         \
            CASE(function, real, 1);                                                                         \
            CASE(function, real, 2);                                                                         \
            CASE(function, real, 3);                                                                         \
            CASE(function, real, 4);                                                                         \
            CASE(function, real, 5);                                                                         \
            CASE(function, real, 6);                                                                         \
            CASE(function, real, 7);                                                                         \
            CASE(function, real, 8);                                                                         \
            CASE(function, real, 9);                                                                         \
            CASE(function, real, 10);                                                                        \
            CASE(function, real, 11);                                                                        \
            CASE(function, real, 12);                                                                        \
            CASE(function, real, 13);                                                                        \
            CASE(function, real, 14);                                                                        \
            CASE(function, real, 15);                                                                        \
            CASE(function, real, 16);                                                                        \
        }                                                                                                    \
    }

DEFINE_RANGE(gem_float, float)
DEFINE_RANGE(gem_double, double)
DEFINE_RANGE(segem_float, float)
DEFINE_RANGE(segem_double, double)

/* Conversions of float16; the first and last loop keep gcc from doing the other in 16-bit lanes. */
enum { BLOCK = 256 };

FOR_EACH_CPU static void widen(float *wide, const uint16_t *half, size_t count) {
    uint32_t code[BLOCK];
    for (size_t i = 0; i < count; i++)
        code[i] = half[i];
    for (size_t i = 0; i < count; i++)
        wide[i] = float_of_half(code[i]);
}

FOR_EACH_CPU static void narrow(uint16_t *half, const float *wide, size_t count) {
    uint32_t code[BLOCK];
    for (size_t i = 0; i < count; i++)
        code[i] = half_of_float(wide[i]);
    for (size_t i = 0; i < count; i++)
        half[i] = (uint16_t)code[i];
}

static void half_range(void *y, const void *x, size_t count, int n, float epsilon, Range *range) {
    float wide[BLOCK];
    for (size_t at = 0; at < count; at += BLOCK) {
        const size_t size = count - at < BLOCK ? count - at : BLOCK;
        widen(wide, (const uint16_t *)x + at, size);
        range(wide, wide, size, n, epsilon);
        narrow((uint16_t *)y + at, wide, size);
    }
}

/* Nearest whole number, ties to even; of magnitudes below 2^22. */
INLINE float nearest(float value) {
    const float shift = 3 << 22; /* where float32 holds whole numbers alone: + rounds */
    return value + shift - shift;
}

enum { CODES = 256 };

/* How a uint8 code stands for scale * (code - zero). */
typedef struct {
    float scale;
    uint8_t zero;
} Quantization;

/* Each code of x, dequantized, through the activation, and quantized as a code of y. */
static void fill_table(uint8_t *table, Quantization x, Quantization y, int n, float epsilon, Range *range) {
    const float low = (float)-y.zero, high = (float)(CODES - 1 - y.zero);
    float real[CODES];
    for (int code = 0; code < CODES; code++)
        real[code] = (float)(code - x.zero) * x.scale;
    range(real, real, CODES, n, epsilon);
    for (int code = 0; code < CODES; code++) {
        const float quotient = real[code] / y.scale;
        const float inside = quotient < low ? low : quotient > high ? high : quotient;
        table[code] = (uint8_t)((int)nearest(inside) + y.zero);
    }
}

static void look_up(uint8_t *y, const uint8_t *x, size_t count, const uint8_t *table) {
    INDEPENDENT for (size_t i = 0; i < count; i++)
        y[i] = table[x[i]];
}

/* 3. What is used of onnxruntime's C ABI. A status of NULL means success. */

typedef void (*AnyFunction)(void);
typedef const AnyFunction *Api; /* const OrtApi* */
typedef struct OrtStatus OrtStatus;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtCustomOp OrtCustomOp;
typedef struct OrtCustomOpDomain OrtCustomOpDomain;
typedef struct OrtKernelInfo OrtKernelInfo;
typedef struct OrtKernelContext OrtKernelContext;
typedef struct OrtShapeInferContext OrtShapeInferContext;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;
typedef struct OrtValue OrtValue;

/* OrtApiBase: never changes. GetApi returns NULL for a version it does not know. */
typedef struct {
    Api (*GetApi)(uint32_t version);
    const char *(*GetVersionString)(void);
} OrtApiBase;

/* 17 has ParallelFor, shape inference and an operator's version range; 18 has GetMayInplace. */
enum { API_VERSION = 18, INVALID_ARGUMENT = 2, FAIL = 1 };

#define ORT(name, place, result, parameters) \
    enum { name##_place = place };           \
    typedef result(*name##_function) parameters
#define CALL(api, name) ((name##_function)(api)[name##_place])

/* version 1 */
ORT(CreateStatus, 0, OrtStatus *, (int code, const char *text));
ORT(CreateCustomOpDomain, 26, OrtStatus *, (const char *name, OrtCustomOpDomain **out));
ORT(CustomOpDomain_Add, 27, OrtStatus *, (OrtCustomOpDomain *, const OrtCustomOp *));
ORT(AddCustomOpDomain, 28, OrtStatus *, (OrtSessionOptions *, OrtCustomOpDomain *));
ORT(GetTensorMutableData, 51, OrtStatus *, (OrtValue *, void **out));
ORT(GetDimensionsCount, 61, OrtStatus *, (const OrtTensorTypeAndShapeInfo *, size_t *out));
ORT(GetDimensions, 62, OrtStatus *, (const OrtTensorTypeAndShapeInfo *, int64_t *out, size_t rank));
ORT(GetTensorShapeElementCount, 64, OrtStatus *, (const OrtTensorTypeAndShapeInfo *, size_t *out));
ORT(GetTensorTypeAndShape, 65, OrtStatus *, (const OrtValue *, OrtTensorTypeAndShapeInfo **out));
ORT(KernelInfoGetAttribute_float, 85, OrtStatus *, (const OrtKernelInfo *, const char *name, float *out));
ORT(KernelInfoGetAttribute_int64, 86, OrtStatus *, (const OrtKernelInfo *, const char *name, int64_t *out));
ORT(KernelContext_GetInput, 90, OrtStatus *, (const OrtKernelContext *, size_t index, const OrtValue **out));
ORT(KernelContext_GetOutput, 91, OrtStatus *,
    (OrtKernelContext *, size_t index, const int64_t *dimensions, size_t rank, OrtValue **out));
ORT(ReleaseStatus, 93, void, (OrtStatus *));
ORT(ReleaseTensorTypeAndShapeInfo, 99, void, (OrtTensorTypeAndShapeInfo *));
ORT(ReleaseCustomOpDomain, 101, void, (OrtCustomOpDomain *));
/* version 17 */
ORT(ShapeInferContext_GetInputTypeShape, 268, OrtStatus *,
    (const OrtShapeInferContext *, size_t index, OrtTensorTypeAndShapeInfo **out)); /* the context keeps it */
ORT(ShapeInferContext_SetOutputTypeShape, 270, OrtStatus *,
    (OrtShapeInferContext *, size_t index, const OrtTensorTypeAndShapeInfo *));
ORT(KernelContext_ParallelFor, 274, OrtStatus *,
    (const OrtKernelContext *, void (*work)(void *, size_t), size_t total, size_t batches, void *data));

/* OrtCustomOp as of version 18; the enumerations in it are ints. */
struct OrtCustomOp {
    uint32_t version;
    void *(*CreateKernel)(const OrtCustomOp *, Api, const OrtKernelInfo *);
    const char *(*GetName)(const OrtCustomOp *);
    const char *(*GetExecutionProviderType)(const OrtCustomOp *);
    int (*GetInputType)(const OrtCustomOp *, size_t index);
    size_t (*GetInputTypeCount)(const OrtCustomOp *);
    int (*GetOutputType)(const OrtCustomOp *, size_t index);
    size_t (*GetOutputTypeCount)(const OrtCustomOp *);
    void (*KernelCompute)(void *kernel, OrtKernelContext *);
    void (*KernelDestroy)(void *kernel);
    int (*GetInputCharacteristic)(const OrtCustomOp *, size_t index);
    int (*GetOutputCharacteristic)(const OrtCustomOp *, size_t index);
    int (*GetInputMemoryType)(const OrtCustomOp *, size_t index);
    int (*GetVariadicInputMinArity)(const OrtCustomOp *);
    int (*GetVariadicInputHomogeneity)(const OrtCustomOp *);
    int (*GetVariadicOutputMinArity)(const OrtCustomOp *);
    int (*GetVariadicOutputHomogeneity)(const OrtCustomOp *);
    OrtStatus *(*CreateKernelV2)(const OrtCustomOp *, Api, const OrtKernelInfo *, void **kernel);
    OrtStatus *(*KernelComputeV2)(void *kernel, OrtKernelContext *);
    OrtStatus *(*InferOutputShapeFn)(const OrtCustomOp *, OrtShapeInferContext *);
    int (*GetStartVersion)(const OrtCustomOp *);
    int (*GetEndVersion)(const OrtCustomOp *);
    size_t (*GetMayInplace)(int **inputs, int **outputs);
    void (*ReleaseMayInplace)(int *inputs, int *outputs);
    size_t (*GetAliasMap)(int **inputs, int **outputs);
    void (*ReleaseAliasMap)(int *inputs, int *outputs);
};

#define TRY(call)                      \
    do {                               \
        OrtStatus *const error = call; \
        if (error)                     \
            return error;              \
    } while (0)

/* 4. A kernel: one node of a model */

enum { FLOAT32 = 1, UINT8 = 2, FLOAT16 = 10, FLOAT64 = 11 }; /* element types as in ONNX */

/* One operator for one element type; `ort` comes first, so that the two pointers are one. */
typedef struct {
    OrtCustomOp ort;
    const char *name;
    int element_type;
    size_t element_size;
    Range *range; /* of float32 where the element type is float16 or uint8 */
} Operator;

typedef struct {
    Api api;
    const Operator *op;
    int n;
    float epsilon;
} Kernel;

typedef struct {
    const Kernel *kernel;
    char *y;
    const char *x;
    size_t count;
    uint8_t table[CODES]; /* of a quantized activation */
} Job;

enum { CHUNK = 1 << 15 }; /* elements that one thread takes at a time: about 10 microseconds */

static void compute_chunk(void *data, size_t index) {
    const Job *const job = data;
    const Kernel *const kernel = job->kernel;
    const size_t start = index * CHUNK, offset = start * kernel->op->element_size;
    const size_t count = job->count - start < CHUNK ? job->count - start : CHUNK;
    char *const y = job->y + offset;
    const char *const x = job->x + offset;
    if (kernel->op->element_type == UINT8)
        look_up((uint8_t *)y, (const uint8_t *)x, count, job->table);
    else if (kernel->op->element_type == FLOAT16)
        half_range(y, x, count, kernel->n, kernel->epsilon, kernel->op->range);
    else
        kernel->op->range(y, x, count, kernel->n, kernel->epsilon);
}

enum { X_SCALE = 1, X_ZERO_POINT, Y_SCALE, Y_ZERO_POINT, QUANTIZED_INPUTS };

static const char *const INPUTS[QUANTIZED_INPUTS] = {"x", "x_scale", "x_zero_point", "y_scale", "y_zero_point"};

static OrtStatus *refuse_count(const Kernel *kernel, size_t index, size_t count) {
    char text[120];
    snprintf(text, sizeof text, "ai.gemedge::%s: %s has %zu elements; it must have 1", kernel->op->name, INPUTS[index],
             count);
    return CALL(kernel->api, CreateStatus)(INVALID_ARGUMENT, text);
}

static OrtStatus *refuse_scale(const Kernel *kernel, size_t index, float scale) {
    char text[120];
    snprintf(text, sizeof text, "ai.gemedge::%s: %s=%g must be positive and finite", kernel->op->name, INPUTS[index],
             (double)scale);
    return CALL(kernel->api, CreateStatus)(INVALID_ARGUMENT, text);
}

/* The only number of an input. */
static OrtStatus *read_number(const Kernel *kernel, OrtKernelContext *context, size_t index, void *out, size_t size) {
    const Api api = kernel->api;
    const OrtValue *value = NULL;
    OrtTensorTypeAndShapeInfo *shape = NULL;
    void *number = NULL;
    size_t count = 0;
    TRY(CALL(api, KernelContext_GetInput)(context, index, &value));
    TRY(CALL(api, GetTensorTypeAndShape)(value, &shape));
    OrtStatus *const status = CALL(api, GetTensorShapeElementCount)(shape, &count);
    CALL(api, ReleaseTensorTypeAndShapeInfo)(shape);
    TRY(status);
    if (count != 1)
        return refuse_count(kernel, index, count);
    TRY(CALL(api, GetTensorMutableData)((OrtValue *)(uintptr_t)value, &number));
    memcpy(out, number, size);
    return NULL;
}

static OrtStatus *read_quantization(const Kernel *kernel, OrtKernelContext *context, size_t scale, size_t zero,
                                    Quantization *out) {
    TRY(read_number(kernel, context, scale, &out->scale, sizeof out->scale));
    TRY(read_number(kernel, context, zero, &out->zero, sizeof out->zero));
    return out->scale > 0 && out->scale <= FLT_MAX ? NULL : refuse_scale(kernel, scale, out->scale);
}

static OrtStatus *make_table(const Kernel *kernel, OrtKernelContext *context, uint8_t *table) {
    Quantization x = {0, 0}, y = {0, 0};
    TRY(read_quantization(kernel, context, X_SCALE, X_ZERO_POINT, &x));
    TRY(read_quantization(kernel, context, Y_SCALE, Y_ZERO_POINT, &y));
    fill_table(table, x, y, kernel->n, kernel->epsilon, kernel->op->range);
    return NULL;
}

static OrtStatus *compute_with_dimensions(const Kernel *kernel, OrtKernelContext *context, OrtValue *x,
                                          const OrtTensorTypeAndShapeInfo *shape, int64_t *dimensions, size_t rank) {
    const Api api = kernel->api;
    OrtValue *y = NULL;
    void *from = NULL, *to = NULL;
    Job job = {kernel, NULL, NULL, 0, {0}};
    TRY(CALL(api, GetDimensions)(shape, dimensions, rank));
    TRY(CALL(api, GetTensorShapeElementCount)(shape, &job.count));
    TRY(CALL(api, KernelContext_GetOutput)(context, 0, dimensions, rank, &y));
    if (job.count == 0)
        return NULL;
    TRY(CALL(api, GetTensorMutableData)(x, &from));
    TRY(CALL(api, GetTensorMutableData)(y, &to));
    job.x = from;
    job.y = to;
    if (kernel->op->element_type == UINT8)
        TRY(make_table(kernel, context, job.table));
    if (job.count > CHUNK)
        return CALL(api, KernelContext_ParallelFor)(context, compute_chunk, (job.count - 1) / CHUNK + 1, 0, &job);
    compute_chunk(&job, 0);
    return NULL;
}

static OrtStatus *compute_with_shape(const Kernel *kernel, OrtKernelContext *context, OrtValue *x,
                                     const OrtTensorTypeAndShapeInfo *shape) {
    size_t rank = 0;
    TRY(CALL(kernel->api, GetDimensionsCount)(shape, &rank));
    int64_t *const dimensions = malloc((rank + 1) * sizeof *dimensions);
    if (dimensions == NULL)
        return CALL(kernel->api, CreateStatus)(FAIL, "gemedge: no memory for the shape of a tensor");
    OrtStatus *const status = compute_with_dimensions(kernel, context, x, shape, dimensions, rank);
    free(dimensions);
    return status;
}

static OrtStatus *compute(void *state, OrtKernelContext *context) {
    const Kernel *const kernel = state;
    const OrtValue *x = NULL;
    OrtTensorTypeAndShapeInfo *shape = NULL;
    TRY(CALL(kernel->api, KernelContext_GetInput)(context, 0, &x));
    TRY(CALL(kernel->api, GetTensorTypeAndShape)(x, &shape));
    OrtStatus *const status = compute_with_shape(kernel, context, (OrtValue *)(uintptr_t)x, shape);
    CALL(kernel->api, ReleaseTensorTypeAndShapeInfo)(shape);
    return status;
}

/* A status that names the operator and the attribute, which onnxruntime's own does not always. */
static OrtStatus *replace_status(Api api, OrtStatus *status, const char *name, const char *reason) {
    char text[120];
    CALL(api, ReleaseStatus)(status);
    snprintf(text, sizeof text, "ai.gemedge::%s: %s", name, reason);
    return CALL(api, CreateStatus)(INVALID_ARGUMENT, text);
}

static OrtStatus *create_kernel(const OrtCustomOp *ort, Api api, const OrtKernelInfo *info, void **out) {
    const Operator *const op = (const Operator *)(const void *)ort;
    char text[120];
    int64_t n = 0;
    float epsilon = 0;
    OrtStatus *status = CALL(api, KernelInfoGetAttribute_int64)(info, "n", &n);
    if (status)
        return replace_status(api, status, op->name, "attribute n is missing or not an int");
    status = CALL(api, KernelInfoGetAttribute_float)(info, "epsilon", &epsilon);
    if (status)
        return replace_status(api, status, op->name, "attribute epsilon is missing or not a float");
    if (n < 1 || n > 16) {
        snprintf(text, sizeof text, "ai.gemedge::%s: n=%lld must be a whole number from 1 to 16", op->name,
                 (long long)n);
        return CALL(api, CreateStatus)(INVALID_ARGUMENT, text);
    }
    if (!(epsilon > 0 && epsilon <= FLT_MAX)) {
        snprintf(text, sizeof text, "ai.gemedge::%s: epsilon=%g must be positive and finite", op->name,
                 (double)epsilon);
        return CALL(api, CreateStatus)(INVALID_ARGUMENT, text);
    }
    Kernel *const kernel = malloc(sizeof *kernel);
    if (kernel == NULL)
        return CALL(api, CreateStatus)(FAIL, "gemedge: no memory for a kernel");
    *kernel = (Kernel){api, op, (int)n, epsilon};
    *out = kernel;
    return NULL;
}

static void destroy_kernel(void *kernel) {
    free(kernel);
}

/* 5. The operators: what onnxruntime asks about them, and their registration */

static Api registered_api; /* for shape inference, which is not told one; the same table for every caller */

static const char *name_of(const OrtCustomOp *ort) {
    return ((const Operator *)(const void *)ort)->name;
}

static const char *on_cpu(const OrtCustomOp *ort) {
    (void)ort;
    return NULL;
}

/* Of the inputs, and of output 0. */
static int type_of(const OrtCustomOp *ort, size_t index) {
    const int is_scale = index == X_SCALE || index == Y_SCALE;
    return is_scale ? FLOAT32 : ((const Operator *)(const void *)ort)->element_type;
}

static size_t input_count(const OrtCustomOp *ort) {
    return ((const Operator *)(const void *)ort)->element_type == UINT8 ? QUANTIZED_INPUTS : 1;
}

static size_t one(const OrtCustomOp *ort) {
    (void)ort;
    return 1;
}

static int version_one(const OrtCustomOp *ort) {
    (void)ort;
    return 1;
}

static int required(const OrtCustomOp *ort, size_t index) {
    (void)ort, (void)index;
    return 0; /* INPUT_OUTPUT_REQUIRED */
}

static int default_memory(const OrtCustomOp *ort, size_t index) {
    (void)ort, (void)index;
    return 0; /* OrtMemTypeDefault */
}

/* Y has X's shape. Rank 0 is left open: onnxruntime gives it for a shape that it does not know, too. */
static OrtStatus *infer_shape(const OrtCustomOp *ort, OrtShapeInferContext *context) {
    const Api api = __atomic_load_n(&registered_api, __ATOMIC_ACQUIRE);
    OrtTensorTypeAndShapeInfo *shape = NULL;
    size_t rank = 0;
    (void)ort;
    TRY(CALL(api, ShapeInferContext_GetInputTypeShape)(context, 0, &shape));
    TRY(CALL(api, GetDimensionsCount)(shape, &rank));
    return rank == 0 ? NULL : CALL(api, ShapeInferContext_SetOutputTypeShape)(context, 0, shape);
}

static void release_pairs(int *inputs, int *outputs) {
    free(inputs);
    free(outputs);
}

/* The pairs of input and output that may share their memory: one pair, 0 and 0; without memory, none. */
static size_t may_share(int **inputs, int **outputs) {
    *inputs = calloc(1, sizeof **inputs);
    *outputs = calloc(1, sizeof **outputs);
    if (*inputs && *outputs)
        return 1;
    release_pairs(*inputs, *outputs);
    *inputs = *outputs = NULL;
    return 0;
}

#define OPERATOR(label, type, size, function)                                                                       \
    {                                                                                                               \
        .ort = {.version = API_VERSION,                                                                             \
                .GetName = name_of,                                                                                 \
                .GetExecutionProviderType = on_cpu,                                                                 \
                .GetInputType = type_of,                                                                            \
                .GetInputTypeCount = input_count,                                                                   \
                .GetOutputType = type_of,                                                                           \
                .GetOutputTypeCount = one,                                                                          \
                .KernelDestroy = destroy_kernel,                                                                    \
                .GetInputCharacteristic = required,                                                                 \
                .GetOutputCharacteristic = required,                                                                \
                .GetInputMemoryType = default_memory,                                                               \
                .CreateKernelV2 = create_kernel,                                                                    \
                .KernelComputeV2 = compute,                                                                         \
                .InferOutputShapeFn = infer_shape,                                                                  \
                .GetStartVersion = version_one,                                                                     \
                .GetEndVersion = version_one,                                                                       \
                .GetMayInplace = may_share,                                                                         \
                .ReleaseMayInplace = release_pairs},                                                                \
        .name = label, .element_type = type, .element_size = size, .range = function                                \
    }

static const Operator OPERATORS[] = {
    OPERATOR("GEM", FLOAT32, 4, gem_float_range),     OPERATOR("GEM", FLOAT16, 2, gem_float_range),
    OPERATOR("GEM", FLOAT64, 8, gem_double_range),    OPERATOR("SEGEM", FLOAT32, 4, segem_float_range),
    OPERATOR("SEGEM", FLOAT16, 2, segem_float_range), OPERATOR("SEGEM", FLOAT64, 8, segem_double_range),
    OPERATOR("QuantizedGEM", UINT8, 1, gem_float_range), OPERATOR("QuantizedSEGEM", UINT8, 1, segem_float_range),
};

static OrtStatus *fill(Api api, OrtCustomOpDomain *domain) {
    for (size_t i = 0; i < sizeof OPERATORS / sizeof *OPERATORS; i++)
        TRY(CALL(api, CustomOpDomain_Add)(domain, &OPERATORS[i].ort));
    return NULL;
}

/* The one domain of this process, made by the first caller: sessions keep pointing to it, so it is never released. */
static OrtStatus *shared_domain(Api api, OrtCustomOpDomain **out) {
    static OrtCustomOpDomain *shared;
    OrtCustomOpDomain *fresh = NULL;
    *out = __atomic_load_n(&shared, __ATOMIC_ACQUIRE);
    if (*out)
        return NULL;
    TRY(CALL(api, CreateCustomOpDomain)("ai.gemedge", &fresh));
    OrtStatus *const status = fill(api, fresh);
    if (!status && __atomic_compare_exchange_n(&shared, out, fresh, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
        *out = fresh;
        return NULL;
    }
    CALL(api, ReleaseCustomOpDomain)(fresh); /* it could not be filled, or another thread was faster */
    return status;
}

/* onnxruntime looks this name up in a library of custom operators. */
__attribute__((visibility("default"))) OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base);

OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
    const Api api = base->GetApi(API_VERSION);
    OrtCustomOpDomain *domain = NULL;
    if (api == NULL) /* version 1 is always there, and all that a message needs */
        return CALL(base->GetApi(1), CreateStatus)(FAIL, "gemedge: this onnxruntime is older than 1.18");
    __atomic_store_n(&registered_api, api, __ATOMIC_RELEASE);
    TRY(shared_domain(api, &domain));
    return CALL(api, AddCustomOpDomain)(options, domain);
}
