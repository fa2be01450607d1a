// An HTTPS site that tells what reached it. node site.js DIR ADDRESS PORT, DIR with server.pem and .key
//   /echo           the request's method, headers, and its body's length and SHA-256, in JSON
//   /fails/NAME/N   503 to the first N requests of that NAME, then as /echo with the count
//   /drip           a line at once and another one when /go is asked for
//   /hop            headers that are for one hop
//   anything else   404
const [dir, address, port] = process.argv.slice(2);
const fs = require("fs");
const { createHash } = require("crypto");
const counts = new Map();
let waiting = [];

function echo(request, response, more) {
  const hash = createHash("sha256");
  let length = 0;
  request.on("data", (data) => {
    hash.update(data);
    length += data.length;
  });
  request.on("end", () => {
    const { method, url, headers, httpVersion } = request;
    const told = { method, url, headers, httpVersion, length, sha256: hash.digest("hex"), ...more };
    response.setHeader("content-type", "application/json");
    response.end(JSON.stringify(told));
  });
}

const options = { cert: fs.readFileSync(`${dir}/server.pem`), key: fs.readFileSync(`${dir}/server.key`) };
const server = require("https").createServer(options, (request, response) => {
  const [, verb, name, fails] = request.url.split("/");
  if (verb === "echo") {
    echo(request, response, {});
  } else if (verb === "fails") {
    const count = (counts.get(name) || 0) + 1;
    counts.set(name, count);
    if (count <= Number(fails)) {
      response.statusCode = 503;
      response.end("not yet\n");
    } else {
      echo(request, response, { count });
    }
  } else if (verb === "drip") {
    response.write("first\n");
    waiting.push(() => response.end("second\n"));
  } else if (verb === "go") {
    waiting.forEach((go) => go());
    waiting = [];
    response.end("gone\n");
  } else if (verb === "hop") {
    response.setHeader("connection", "x-private");
    response.setHeader("x-private", "1");
    response.setHeader("x-public", "1");
    response.end("hop\n");
  } else {
    response.statusCode = 404;
    response.end("no\n");
  }
});
server.listen(Number(port), address, () => console.log("listening"));
