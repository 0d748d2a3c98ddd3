// @tus/server with its S3 store, nothing else: node server.mjs PORT ENDPOINT BUCKET
import { S3Store } from "@tus/s3-store";
import { Server } from "@tus/server";

const [port, endpoint, bucket] = process.argv.slice(2);
const s3ClientConfig = { bucket, endpoint, region: "us-east-1", forcePathStyle: true };
const datastore = new S3Store({ partSize: 8 * 1024 * 1024, s3ClientConfig });
const server = new Server({ path: "/files", relativeLocation: true, datastore });
server.listen({ host: "127.0.0.1", port: Number(port) });
