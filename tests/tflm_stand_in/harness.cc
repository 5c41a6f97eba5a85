/* Registers gemedge.Activation as an interpreter does and runs it on standard input, on to standard output.

   Arguments: a file of options, bits in, its scale and zero point, bits out, its scale and zero point, the count.
   Ends with 1 where Prepare refuses, 2 where a temporary tensor was kept or Invoke fails. */

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "gemedge_tflm.h"

static TfLiteTensor Tensor(char *const *arguments, std::vector<char> *memory, TfLiteIntArray *dims) {
    const int bits = std::atoi(arguments[0]);
    memory->resize(static_cast<size_t>(dims->data[0]) * static_cast<size_t>(bits) / 8);
    TfLiteTensor made{};
    made.type = bits == 8 ? kTfLiteInt8 : bits == 16 ? kTfLiteInt16 : kTfLiteFloat32;
    made.data.raw = memory->data();
    made.dims = dims;
    made.params = {std::strtof(arguments[1], nullptr), std::atoi(arguments[2])};
    return made;
}

int main(int, char **arguments) {
    std::vector<char> options(4096), in, out;
    std::FILE *file = std::fopen(arguments[1], "rb");
    const size_t length = std::fread(options.data(), 1, options.size(), file);
    std::fclose(file);
    TfLiteIntArray dims{1, {std::atoi(arguments[8])}}, first{1, {0}}, second{1, {1}};
    TfLiteTensor tensors[2] = {Tensor(arguments + 2, &in, &dims), Tensor(arguments + 5, &out, &dims)};
    TfLiteEvalTensor eval[2] = {{tensors[0].data, &dims, tensors[0].type}, {tensors[1].data, &dims, tensors[1].type}};
    TfLiteContext context{tensors, eval, 0};
    const TFLMRegistration *registered = gemedge::RegisterActivation();
    TfLiteNode node{&first, &second, nullptr, options.data(), static_cast<int>(length)};
    node.user_data = registered->init(&context, options.data(), length);
    const TfLiteStatus prepared = registered->prepare(&context, &node);
    if (context.temporaries != 0) return 2;
    if (prepared != kTfLiteOk) return 1;
    if (std::fread(in.data(), 1, in.size(), stdin) != in.size()) return 2;
    if (registered->invoke(&context, &node) != kTfLiteOk) return 2;
    return std::fwrite(out.data(), 1, out.size(), stdout) == out.size() ? 0 : 2;
}
