"use strict";
const modes = {
    hash() {
        const crypto = require("crypto");
        for (const name of ["sha256", "sha512", "md5"]) console.log(crypto.createHash(name).update("launch").digest("hex"));
        console.log(crypto.pbkdf2Sync("a", "b", 1000, 32, "sha256").toString("hex"));
    },
    zip() {
        const zlib = require("zlib");
        const text = Buffer.from("a launch is a walk through files\n".repeat(3000));
        console.log(zlib.gzipSync(text).length, zlib.brotliCompressSync(text).length);
    },
    text() {
        console.log(new Intl.DateTimeFormat("de", { dateStyle: "full" }).format(new Date(0)));
        console.log(["ä", "a", "z"].sort(new Intl.Collator("sv").compare), "straße".normalize("NFD").toUpperCase());
        console.log(require("util").inspect(new Map([[1, { a: [1, 2, 3] }]]), { depth: 5 }));
    },
    server() {
        const http = require("http");
        const server = http.createServer((request, response) => response.end("hello " + request.url));
        server.listen("/tmp/modes.sock", () => {
            let left = 5;
            for (let at = 0; at < 5; at++) {
                http.get({ socketPath: "/tmp/modes.sock", path: "/" + at }, (answer) => {
                    answer.resume();
                    answer.on("end", () => --left || server.close());
                });
            }
        });
    },
    worker() {
        const { Worker, isMainThread } = require("worker_threads");
        const worker = new Worker("require('worker_threads').parentPort.postMessage([1, 2, 3].map((x) => x ** 2))", { eval: true });
        worker.on("message", (message) => console.log(isMainThread, message));
    },
};
modes[process.argv[2]]();
