// A contract is read whole or refused with the name of what is wrong.
#include "contract.hpp"

#include <nlohmann/json.hpp>

#include "check.hpp"

namespace {

nlohmann::json sound() {
  return {{"schema", 1},          {"classes", {"road", "sky"}}, {"size", {48, 64}},
          {"mean", {0, 0, 0}},    {"std", {1, 1, 1}},           {"colour", "RGB"},
          {"layout", "NCHW"},     {"resize", "pillow-bilinear"}, {"output", "logits"}, {"precision", "fp32"},
          {"upsampling", nullptr}};
}

}  // namespace

int main() {
  const auto contract = segdeploy::read_contract(sound().dump(), "m.onnx");
  CHECK(contract.classes.size() == 2);
  CHECK(contract.height == 48 && contract.width == 64);
  CHECK(contract.output == segdeploy::Output::logits);
  const auto whole = sound();  // what items() looks into
  for (const auto& item : whole.items()) {
    if (item.key() == "upsampling") continue;  // older files have none
    auto damaged = sound();
    damaged.erase(item.key());
    check_refused("m.onnx: its contract has no usable '" + item.key() + "'",
                  [&] { segdeploy::read_contract(damaged.dump(), "m.onnx"); });
    damaged[item.key()] = nlohmann::json::object();
    check_refused("'" + item.key() + "'",
                  [&] { segdeploy::read_contract(damaged.dump(), "m.onnx"); });
  }
  auto later = sound();
  later["schema"] = 2;
  check_refused("has schema 2, this segdeploy reads 1",
                [&] { segdeploy::read_contract(later.dump(), "m.onnx"); });
  auto flat = sound();
  flat["std"] = {1, 0, 1};
  check_refused("'std'", [&] { segdeploy::read_contract(flat.dump(), "m.onnx"); });
  auto vast = sound();
  vast["size"] = {1 << 20, 1 << 20};
  check_refused("'size'", [&] { segdeploy::read_contract(vast.dump(), "m.onnx"); });
  check_refused("is not a JSON object", [] { segdeploy::read_contract("[1", "m.onnx"); });
  return 0;
}
