/* Stand-ins for what gemedge_tflm.cc uses of TensorFlow Lite Micro: the same names and types, nothing else. */
#ifndef STAND_IN_COMMON_H
#define STAND_IN_COMMON_H

#include <cstddef>
#include <cstdint>

enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };
enum TfLiteType { kTfLiteNoType = 0, kTfLiteFloat32 = 1, kTfLiteInt16 = 7, kTfLiteInt8 = 9 };
struct TfLiteIntArray {
    int size;
    int data[8];
};
union TfLitePtrUnion {
    char *raw;
    int8_t *int8;
    int16_t *i16;
};
struct TfLiteQuantizationParams {
    float scale;
    int32_t zero_point;
};
struct TfLiteTensor {
    TfLiteType type;
    TfLitePtrUnion data;
    TfLiteIntArray *dims;
    TfLiteQuantizationParams params;
};
struct TfLiteEvalTensor {
    TfLitePtrUnion data;
    TfLiteIntArray *dims;
    TfLiteType type;
};
struct TfLiteContext {
    TfLiteTensor *tensors;
    TfLiteEvalTensor *eval_tensors;
    int temporaries;
};
struct TfLiteNode {
    TfLiteIntArray *inputs;
    TfLiteIntArray *outputs;
    void *user_data;
    const void *custom_initial_data;
    int custom_initial_data_size;
};

#endif
