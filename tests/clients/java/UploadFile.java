import io.tus.java.client.ProtocolException;
import io.tus.java.client.TusClient;
import io.tus.java.client.TusExecutor;
import io.tus.java.client.TusURLMemoryStore;
import io.tus.java.client.TusUpload;
import io.tus.java.client.TusUploader;
import java.io.File;
import java.io.IOException;
import java.net.HttpURLConnection;
import java.net.URL;
import java.util.ArrayDeque;
import java.util.Arrays;
import java.util.Deque;

/**
 * Uploads a file with tus-java-client, which sends the tokens of the arguments, one for each request and the last one
 * for all that follow. After a 401 to a PATCH the program resumes, as an application does that has renewed its token.
 *
 * Arguments: creation URL, file, bytes of a request, tokens. Prints the URL of the upload.
 */
class UploadFile extends TusClient {
    private static final int ATTEMPTS = 3;
    private final Deque<String> tokens;

    UploadFile(String[] tokens) {
        this.tokens = new ArrayDeque<>(Arrays.asList(tokens));
    }

    @Override
    public void prepareConnection(HttpURLConnection connection) {
        super.prepareConnection(connection);
        String token = tokens.size() > 1 ? tokens.remove() : tokens.peek();
        connection.setRequestProperty("Authorization", "Bearer " + token);
    }

    public static void main(String[] arguments) throws Exception {
        UploadFile client = new UploadFile(Arrays.copyOfRange(arguments, 3, arguments.length));
        client.setUploadCreationURL(new URL(arguments[0]));
        client.enableResuming(new TusURLMemoryStore());
        TusUpload upload = new TusUpload(new File(arguments[1]));
        int requestSize = Integer.parseInt(arguments[2]);
        TusExecutor executor = new TusExecutor() {
            @Override
            protected void makeAttempt() throws ProtocolException, IOException {
                TusUploader uploader = client.resumeOrCreateUpload(upload);
                uploader.setChunkSize(64 << 10);
                uploader.setRequestPayloadSize(requestSize);
                while (uploader.uploadChunk() > -1) {
                }
                uploader.finish(false);
                System.out.println(uploader.getUploadURL());
            }
        };
        executor.setDelays(new int[] {100, 100, 100});
        for (int attempt = 1; ; attempt++) {
            try {
                executor.makeAttempts();
                return;
            } catch (ProtocolException error) {
                HttpURLConnection cause = error.getCausingConnection();
                if (attempt == ATTEMPTS || cause == null || cause.getResponseCode() != 401) {
                    throw error;
                }
            }
        }
    }
}
