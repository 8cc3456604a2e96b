// Asks the service. Errors carry the one line that it told, a code and the status.

const TRIES = 6;

const wait = (ms) => new Promise((done) => setTimeout(done, ms));

async function ask(path, options) {
  for (let tries = 1; ; tries++) {
    let answer;
    try {
      answer = await fetch(path, options);
    } catch {
      throw new Error("The service does not answer; is it still running?");
    }
    if (answer.ok) return answer;
    if (answer.status === 503 && tries < TRIES) {
      // The queue is full: it said when to come again.
      await wait(1000 * Math.min(10, Number(answer.headers.get("Retry-After")) || 1));
      continue;
    }
    const told = await answer.json().catch(() => ({}));
    const error = new Error(told.error?.message ?? `The service answered ${answer.status}.`);
    error.code = told.error?.code;
    error.status = answer.status;
    if (answer.status === 401) location.assign("/login");
    throw error;
  }
}

export async function getJson(path) {
  return (await ask(path)).json();
}

export async function postJson(path, body) {
  const headers = { "Content-Type": "application/json" };
  return (await ask(path, { method: "POST", headers, body: JSON.stringify(body) })).json();
}

export async function getBlob(path) {
  return (await ask(path)).blob();
}

export async function postForBlob(path) {
  return (await ask(path, { method: "POST" })).blob();
}

/** Sends an image as a machine would; the answer is the result line and its id. */
export async function sendImage(path, blob, name) {
  const known = ["image/jpeg", "image/png", "image/bmp", "image/tiff", "image/webp"];
  const type = known.includes(blob.type) ? blob.type : "application/octet-stream";
  const headers = { "Content-Type": type, "X-Frame-Name": encodeURIComponent(name.toWellFormed?.() ?? name) };
  return (await ask(path, { method: "POST", headers, body: blob })).json();
}
