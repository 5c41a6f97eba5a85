/* The operator gemedge.Activation for TensorFlow Lite Micro; gemedge_tflm.md says how to build and register it. */

#ifndef GEMEDGE_TFLM_H
#define GEMEDGE_TFLM_H

#include "tensorflow/lite/micro/micro_common.h"

namespace gemedge {

constexpr char kActivation[] = "gemedge.Activation";

/* For MicroMutableOpResolver::AddCustom(gemedge::kActivation, gemedge::RegisterActivation()). */
const TFLMRegistration *RegisterActivation();

}  // namespace gemedge

#endif
