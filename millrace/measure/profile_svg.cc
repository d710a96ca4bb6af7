#include "millrace/measure/profile_svg.h"

#include <fmt/format.h>

#include <algorithm>

#include "millrace/base/utf8.h"

namespace millrace {
namespace {

constexpr double kWidth = 1200, kMargin = 12, kRowHeight = 24, kTextHeight = 20, kCharacterWidth = 6.6;
constexpr const char* kGroupColours[] = {"#f3c178", "#e59f71", "#d8c99b", "#c2b280", "#e8b4a0", "#d9b38c"};
constexpr const char *kStepColour = "#e0d5c1", *kBoundColour = "#5b8c5a", *kAboveColour = "#d96c4f", *kWaitColour = "#b9bdc4";

class Drawing {
 public:
  void text(double x, double y, std::string_view what, const char* weight = "normal") {
    body_ += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" font-weight=\"{}\">{}</text>\n", x, y, weight, escape_xml(what));
  }
  // A box with as much of `label` as fits; nothing where it would be too thin to see.
  void box(double x, double y, double width, const char* colour, std::string_view label, std::string_view tip) {
    if (width < 0.05) return;
    body_ += fmt::format("<g><title>{}</title><rect x=\"{:.2f}\" y=\"{:.1f}\" width=\"{:.2f}\" height=\"{:.1f}\" fill=\"{}\"/>",
                         escape_xml(tip), x, y, width, kRowHeight - 1, colour);
    const auto room = static_cast<std::size_t>(std::max(0.0, (width - 6) / kCharacterWidth));
    if (room >= 3 && !label.empty()) {
      const std::string shown = label.size() <= room ? std::string(label) : fmt::format("{}..", label.substr(0, room - 2));
      body_ += fmt::format("<text x=\"{:.2f}\" y=\"{:.1f}\">{}</text>", x + 3, y + 16, escape_xml(shown));
    }
    body_ += "</g>\n";
  }
  std::string finish(double height) const {
    return fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" viewBox=\"0 0 {0:.0f} {1:.0f}\" "
        "font-family=\"monospace\" font-size=\"11\">\n"
        "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{2}</svg>\n",
        kWidth, height, body_);
  }

 private:
  std::string body_;
};

// Draws a profile from `y` down and returns where it ends.
double draw(Drawing& drawing, const StepProfile& profile, double y) {
  const double scale = profile.seconds > 0 ? (kWidth - 2 * kMargin) / profile.seconds : 0;
  const auto tip = [&](std::string_view name, double time) {
    return fmt::format("{}: {:.3f} ms, {:.1f} % of the step", name, 1e3 * time, 100 * time / profile.seconds);
  };
  drawing.text(kMargin, y + 14,
               fmt::format("{}: {:.3f} ms with {} threads; the machine's bound is {:.0f} % of it", profile.title, 1e3 * profile.seconds,
                           profile.num_threads, profile.seconds > 0 ? 100 * profile.bound_seconds() / profile.seconds : 0.0),
               "bold");
  y += kTextHeight;
  drawing.box(kMargin, y, profile.seconds * scale, kStepColour, profile.title, tip(profile.title, profile.seconds));
  double x = kMargin;
  drawing.box(x, y + kRowHeight, profile.start_seconds * scale, kWaitColour, "start", tip("start of the step", profile.start_seconds));
  x += profile.start_seconds * scale;
  // Groups in the order of their first operation.
  std::vector<std::string> groups;
  for (const ProfileRow& row : profile.rows) {
    if (std::find(groups.begin(), groups.end(), row.group) == groups.end()) groups.push_back(row.group);
  }
  for (std::size_t g = 0; g < groups.size(); ++g) {
    const char* colour = kGroupColours[g % std::size(kGroupColours)];
    const double group_x = x;
    double group_seconds = 0;
    for (const ProfileRow& row : profile.rows) {
      if (row.group != groups[g]) continue;
      const double whole = row.busy_seconds + row.wait_seconds, bound = std::min(row.bound_seconds, row.busy_seconds);
      const std::string name = fmt::format("{}, {}", row.group, row.name);
      drawing.box(x, y + 2 * kRowHeight, whole * scale, colour, row.name, tip(name, whole));
      double part_x = x;
      const auto part = [&](const char* part_colour, std::string_view label, double time) {
        drawing.box(part_x, y + 3 * kRowHeight, time * scale, part_colour, label, tip(fmt::format("{}, {}", name, label), time));
        part_x += time * scale;
      };
      part(kBoundColour, "bound", bound);
      part(kAboveColour, "above the bound", row.busy_seconds - bound);
      part(kWaitColour, "waiting", row.wait_seconds);
      x += whole * scale;
      group_seconds += whole;
    }
    drawing.box(group_x, y + kRowHeight, group_seconds * scale, colour, groups[g], tip(groups[g], group_seconds));
  }
  return y + 4 * kRowHeight + kMargin;
}

}  // namespace

std::string escape_xml(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size();) {
    const utf8::Scan found = utf8::scan(text, i);
    const auto c = static_cast<unsigned char>(text[i]);
    if (!found.valid || (c < 0x20 && c != '\t' && c != '\n')) {
      out += utf8::kReplacement;
    } else if (c == '&') {
      out += "&amp;";
    } else if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else if (c == '"') {
      out += "&quot;";
    } else if (c == '\'') {
      out += "&#39;";
    } else {
      out += text.substr(i, found.size);
    }
    i += found.size;
  }
  return out;
}

std::string profile_svg(std::string_view heading, std::span<const StepProfile> profiles) {
  Drawing drawing;
  double y = kMargin;
  drawing.text(kMargin, y + 14, heading, "bold");
  y += kTextHeight;
  for (const StepProfile& profile : profiles) y = draw(drawing, profile, y);
  double x = kMargin;
  for (const auto& [colour, meaning] :
       {std::pair{kBoundColour, "what reading or computing needs at the machine's peak"}, std::pair{kAboveColour, "computed above that"},
        std::pair{kWaitColour, "waiting for another thread, or starting"}}) {
    drawing.box(x, y, kRowHeight - 1, colour, "", meaning);
    drawing.text(x + kRowHeight + 4, y + 16, meaning);
    x += 420;
  }
  return drawing.finish(y + kRowHeight + kMargin);
}

}  // namespace millrace
