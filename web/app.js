// The chat page: one conversation, held in memory, over the server's own OpenAI-compatible API.
import { renderMarkdown } from "./markdown.js";

const $ = (id) => document.getElementById(id);
const conversation = $("conversation");
const prompt = $("prompt");

const state = {
  messages: [],      // {role, content}, without the system prompt
  controller: null,  // of the answer being written
  defaults: {},
};

// ---- settings ----

const SETTINGS_KEY = "millrace.settings";
const settingFields = [...document.querySelectorAll("[data-setting]")];

function loadSettings() {
  let saved = {};
  try {
    saved = JSON.parse(localStorage.getItem(SETTINGS_KEY)) ?? {};
  } catch {
    // Storage may be off, or hold something else: the defaults serve.
  }
  for (const field of settingFields) field.value = saved[field.dataset.setting] ?? "";
}

function saveSettings() {
  const values = Object.fromEntries(settingFields.map((field) => [field.dataset.setting, field.value]));
  try {
    localStorage.setItem(SETTINGS_KEY, JSON.stringify(values));
  } catch {
    // As above.
  }
}

function samplingFields() {
  const body = {};
  for (const field of settingFields) {
    if (field.type === "number" && field.value.trim() !== "") body[field.dataset.setting] = Number(field.value);
  }
  return body;
}

function setSettingsOpen(open) {
  $("settings").hidden = !open;
  $("toggle-settings").setAttribute("aria-expanded", String(open));
}

// ---- messages on the page ----

function showMessage(role, content) {
  $("welcome").hidden = true;
  const message = document.createElement("article");
  message.className = `message ${role}`;
  const who = document.createElement("div");
  who.className = "who";
  who.textContent = role === "user" ? "You" : "Assistant";
  const body = document.createElement("div");
  body.className = "body";
  if (role === "user") body.textContent = content;
  message.append(who, body);
  if (role === "assistant") {
    const meta = document.createElement("div");
    meta.className = "meta";
    message.append(meta);
  }
  conversation.append(message);
  return message;
}

function isAtBottom() {
  return conversation.scrollHeight - conversation.scrollTop - conversation.clientHeight < 60;
}

function renderAnswer(message, text) {
  const follow = isAtBottom();
  message.querySelector(".body").replaceChildren(...renderMarkdown(text));
  if (follow) conversation.scrollTop = conversation.scrollHeight;
}

function showMeta(message, parts, text) {
  const meta = message.querySelector(".meta");
  const copy = document.createElement("button");
  copy.type = "button";
  copy.textContent = "Copy";
  copy.addEventListener("click", () => copyText(copy, text));
  meta.replaceChildren(copy, ...parts.map((part) => {
    const span = document.createElement("span");
    span.textContent = part;
    return span;
  }));
}

async function copyText(button, text) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not copied";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

function showError(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

function setBusy(busy) {
  $("stop").hidden = !busy;
  $("send").hidden = busy;
  $("new-chat").disabled = busy;
  $("regenerate").disabled = busy || !state.messages.some((message) => message.role === "user");
}

// ---- asking ----

// Yields the JSON of each server-sent event.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffered = "";
  while (true) {
    const { value, done } = await reader.read();
    if (done) return;
    buffered += value;
    let end;
    while ((end = buffered.indexOf("\n\n")) >= 0) {
      const event = buffered.slice(0, end);
      buffered = buffered.slice(end + 2);
      if (!event.startsWith("data: ")) continue;
      const data = event.slice(6);
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function errorText(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered ${response.status}.`;
  }
}

// Writes an answer to the conversation as it stands.
async function answer() {
  showError("");
  const message = showMessage("assistant", "");
  message.classList.add("writing");
  conversation.scrollTop = conversation.scrollHeight;
  state.controller = new AbortController();
  setBusy(true);

  const system = $("system").value.trim();
  const messages = system ? [{ role: "system", content: system }, ...state.messages] : state.messages;
  const begun = performance.now();
  let firstAt = 0, lastAt = 0, tokens = 0, text = "", finish = "", frame = 0;
  // Over the time since the first token; but a busy page may read a whole short answer at once, and then only the time since the
  // question says anything.
  const speed = () => {
    if (tokens < 2) return 0;
    const burst = lastAt - firstAt < 0.2 * (lastAt - begun);
    return burst ? (tokens * 1000) / (lastAt - begun) : ((tokens - 1) * 1000) / (lastAt - firstAt);
  };
  const paint = () => {
    frame = 0;
    renderAnswer(message, text);
    if (speed()) $("speed").textContent = speed().toFixed(1);
  };
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({
        messages, stream: true, stream_options: { include_usage: true, continuous_usage_stats: true }, ...samplingFields(),
      }),
      signal: state.controller.signal,
    });
    if (!response.ok) throw new Error(await errorText(response));
    for await (const chunk of events(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      if (chunk.usage) tokens = chunk.usage.completion_tokens;
      const choice = chunk.choices[0];
      if (!choice) continue;
      if (choice.delta.content) {
        lastAt = performance.now();
        if (!firstAt) {
          firstAt = lastAt;
          $("ttft").textContent = `${Math.round(firstAt - begun)} ms`;
        }
        text += choice.delta.content;
        frame ||= requestAnimationFrame(paint);
      }
      if (choice.finish_reason) finish = choice.finish_reason;
    }
  } catch (error) {
    if (error.name === "AbortError") {
      finish = "stopped";
    } else {
      finish = "failed";
      showError(error.message);
    }
  }
  cancelAnimationFrame(frame);
  paint();
  message.classList.remove("writing");
  state.controller = null;
  if (text) {
    state.messages.push({ role: "assistant", content: text });
    const notes = { length: "cut at the token limit", stopped: "stopped", abort: "aborted by the server", failed: "failed" };
    const parts = [`${tokens} tokens`, `first after ${Math.round(firstAt - begun)} ms`];
    if (speed()) parts.push(`${speed().toFixed(1)} tokens/s`);
    if (notes[finish]) parts.push(notes[finish]);
    showMeta(message, parts, text);
  } else if (finish !== "stop" && finish !== "length") {
    message.remove();
  }
  setBusy(false);
  prompt.focus();
  refreshStats();
}

function send() {
  const content = prompt.value.trim();
  if (!content || state.controller) return;
  prompt.value = "";
  fitPrompt();
  if (state.messages.at(-1)?.role === "user") {
    // The last question failed or was stopped before its answer began: both go to the model as one.
    state.messages.at(-1).content += `\n\n${content}`;
  } else {
    state.messages.push({ role: "user", content });
  }
  showMessage("user", content);
  answer();
}

function regenerate() {
  if (state.controller) return;
  if (state.messages.at(-1)?.role === "assistant") {
    state.messages.pop();
    [...conversation.querySelectorAll(".message.assistant")].at(-1)?.remove();
  }
  if (state.messages.at(-1)?.role === "user") answer();
}

function newChat() {
  if (state.controller) return;
  state.messages = [];
  for (const message of conversation.querySelectorAll(".message")) message.remove();
  $("welcome").hidden = false;
  showError("");
  setBusy(false);
  prompt.focus();
}

function fitPrompt() {
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

// ---- the server's state ----

async function refreshStats() {
  let stats;
  try {
    const response = await fetch("v1/engine/stats");
    if (!response.ok) return;
    stats = await response.json();
  } catch {
    $("model").textContent = "the server does not answer";
    return;
  }
  $("model").textContent = stats.model;
  $("model").title = stats.model;
  document.title = `${stats.model} · millrace`;
  const used = stats.kv_usage * 100;
  $("kv").textContent = `${used.toFixed(used < 10 ? 1 : 0)} %`;
  $("kv-bar").style.width = `${used}%`;
  $("running").textContent = stats.running;
  $("waiting").textContent = stats.waiting;
  if (!state.controller && stats.running > 0) $("speed").textContent = stats.generation_tokens_per_second.toFixed(1);
  for (const [name, value] of Object.entries(stats.default_sampling)) {
    if ($(name)) $(name).placeholder = Number(value.toPrecision(4));
  }
  $("max_tokens").max = stats.max_model_len;
  const facts = { ...stats.facts, context: `${stats.max_model_len} tokens`, version: stats.version };
  $("facts").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => {
    const dt = document.createElement("dt");
    dt.textContent = name;
    const dd = document.createElement("dd");
    dd.textContent = value;
    return [dt, dd];
  }));
}

// ---- wiring ----

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
prompt.addEventListener("input", fitPrompt);
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (state.controller) state.controller.abort();
  else if (!$("settings").hidden) setSettingsOpen(false);
});
$("stop").addEventListener("click", () => state.controller?.abort());
$("regenerate").addEventListener("click", regenerate);
$("new-chat").addEventListener("click", newChat);
$("toggle-settings").addEventListener("click", () => setSettingsOpen($("settings").hidden));
$("reset-settings").addEventListener("click", () => {
  for (const field of settingFields) field.value = "";
  saveSettings();
});
for (const field of settingFields) field.addEventListener("change", saveSettings);
conversation.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy]");
  if (button) copyText(button, button.closest(".code").querySelector("pre").textContent);
});

loadSettings();
setSettingsOpen(window.matchMedia("(min-width: 72rem)").matches);
refreshStats();
setInterval(() => {
  if (!document.hidden) refreshStats();
}, 1000);
