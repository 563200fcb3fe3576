// Does this host give what the reference gave? Stage by stage, by golden vectors.
#pragma once

#include <string>

#include "inference.hpp"

namespace segdeploy {

SelfTest self_test(const Inference& inference, const std::string& golden);

}  // namespace segdeploy
