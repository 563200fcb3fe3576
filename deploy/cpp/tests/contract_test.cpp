// A contract is read completely, or refused with the name of the wrong entry.
#include "contract.hpp"

#include <nlohmann/json.hpp>

#include "check.hpp"

namespace {

nlohmann::json sound() {
  return {{"schema", 1},
          {"classes", {"road", "sky"}},
          {"size", {48, 64}},
          {"mean", {0, 0, 0}},
          {"std", {1, 1, 1}},
          {"color", "RGB"},
          {"layout", "NCHW"},
          {"resize", "pillow-bilinear"},
          {"output", "logits"},
          {"precision", "fp32"},
          {"palette", {{1, 2, 3}, {4, 5, 6}}},
          {"scales", {1.0}},
          {"flip", false},
          {"upsampling", nullptr}};
}

}  // namespace

int main() {
  const auto contract = segdeploy::read_contract(sound().dump(), "m.onnx");
  CHECK(contract.classes.size() == 2);
  CHECK(contract.height == 48 && contract.width == 64);
  CHECK(contract.output == segdeploy::Output::logits);
  const auto whole = sound();  // must outlive items()
  for (const auto& item : whole.items()) {
    if (item.key() == "upsampling") continue;  // older files lack this entry
    auto damaged = sound();
    damaged.erase(item.key());
    check_refused("m.onnx: the contract's '" + item.key() + "' is missing; export",
                  [&] { segdeploy::read_contract(damaged.dump(), "m.onnx"); });
    damaged[item.key()] = nlohmann::json::object();
    check_refused("'" + item.key() + "'",
                  [&] { segdeploy::read_contract(damaged.dump(), "m.onnx"); });
  }
  auto earlier = sound();  // spelled the color order in the British way
  earlier.erase("color");
  earlier["colour"] = "BGR";
  CHECK(segdeploy::read_contract(earlier.dump(), "m.onnx").is_bgr);
  auto later = sound();
  later["schema"] = 3;
  check_refused("has schema 3, this segdeploy reads 2",
                [&] { segdeploy::read_contract(later.dump(), "m.onnx"); });
  auto letterboxed = sound();
  letterboxed["schema"] = 2;
  letterboxed["fit"] = "letterbox";
  check_refused("'fit' is wrong, or of a kind that this version does not execute",
                [&] { segdeploy::read_contract(letterboxed.dump(), "m.onnx"); });
  auto current = sound();
  current.erase("color");
  current.update({{"schema", 2},
                  {"channels", {"B", "G", "R"}},
                  {"dtype", "uint8"},
                  {"gray", nullptr},
                  {"scale", 1.0 / 255.0},
                  {"normalization", "f32-affine"}});
  CHECK(segdeploy::read_contract(current.dump(), "m.onnx").is_bgr);
  // What this library does not compute is refused by name.
  const std::pair<const char*, const char*> others[] = {
      {"channels", "[\"gray\"]"},
      {"channels", "[\"nir\",\"R\",\"G\"]"},
      {"channels", "7"},
      {"dtype", "\"uint16\""},
      {"gray", "\"pillow\""},
      {"source_channels", "[\"R\",\"G\",\"B\",\"nir\"]"},
      {"source_size", "[90, 120]"},
      {"scale", "1.0"},
      {"scale", "\"1\""},
      {"normalization", "\"f32-div\""},
      {"head", "\"binary\""},
      {"head", "\"multilabel\""},
      {"min_confidence", "0.5"},
      {"label_ids", "[7,8]"}};
  for (const auto& [name, value] : others) {
    auto foreign = current;
    foreign[name] = nlohmann::json::parse(value);
    check_refused(std::string("'") + name + "' is wrong, or of a kind that this version",
                  [&] { segdeploy::read_contract(foreign.dump(), "m.onnx"); });
  }
  auto normalizing = current;  // a graph of bytes
  normalizing.update({{"layout", "NHWC"}, {"scale", 1.0}, {"normalization", "none"}});
  CHECK(segdeploy::read_contract(normalizing.dump(), "m.onnx").takes_bytes);
  auto bounded = sound();
  bounded["bounds"] = {{16, 24}, {480, 640}, 4};
  CHECK(segdeploy::read_contract(bounded.dump(), "m.onnx").profiles[0].takes({4, 16, 640}));
  for (const char* bounds :
       {"[[16, 24], [480, 640]]", "[[16], [480, 640], 4]", "7", "[[16, 24], [480, 640], 0]",
        "[[500, 500], [100, 100], 1]", "[[0, 24], [480, 640], 4]"}) {
    bounded["bounds"] = nlohmann::json::parse(bounds);
    check_refused("'bounds'", [&] { segdeploy::read_contract(bounded.dump(), "m.onnx"); });
  }
  // Values that a cast would truncate, wrap, or take for a number, and other wrong values.
  const std::pair<const char*, const char*> bent[] = {
      {"size", "[8.7, 8]"},     {"size", "[4294967304, 8]"},
      {"size", "[-1, 8]"},      {"palette", "[[300,-1,0],[0,0,0]]"},
      {"palette", "[[1,2,3]]"}, {"precision", "\"fp99\""},
      {"mean", "[true, 0, 0]"}, {"bounds", "[[1,1],[9,9],1e30]"}};
  for (const auto& [name, value] : bent) {
    auto damaged = sound();
    damaged[name] = nlohmann::json::parse(value);
    check_refused(std::string("'") + name + "'",
                  [&] { segdeploy::read_contract(damaged.dump(), "m.onnx"); });
  }
  const std::string deep(200000, '[');
  check_refused("is not a JSON object",
                [&] { segdeploy::read_contract("{\"arguments\": " + deep, "m.onnx"); });
  // Only a labels contract sets `upsampling`. Other low-resolution scores are resized like any
  // scores.
  auto scores = sound();
  scores["upsampling"] = "half-pixel";
  CHECK(segdeploy::read_contract(scores.dump(), "m").upsampling == segdeploy::Upsampling::none);
  scores["output"] = "labels";
  CHECK(segdeploy::read_contract(scores.dump(), "m").upsampling ==
        segdeploy::Upsampling::half_pixel);
  auto flat = sound();
  flat["std"] = {1, 0, 1};
  check_refused("'std'", [&] { segdeploy::read_contract(flat.dump(), "m.onnx"); });
  auto vast = sound();
  vast["size"] = {1 << 20, 1 << 20};
  check_refused("'size'", [&] { segdeploy::read_contract(vast.dump(), "m.onnx"); });
  check_refused("is not a JSON object", [] { segdeploy::read_contract("[1", "m.onnx"); });
  return 0;
}
