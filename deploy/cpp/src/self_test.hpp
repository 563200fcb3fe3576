// Self-test: compare this host with the reference by golden vectors, stage by stage.
#pragma once

#include <string>

#include "inference.hpp"

namespace segdeploy {

SelfTest self_test(const Inference& inference, const std::string& golden);

}  // namespace segdeploy
