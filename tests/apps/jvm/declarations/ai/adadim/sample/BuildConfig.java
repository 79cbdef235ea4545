package ai.adadim.sample;

public final class BuildConfig {
    public static final String BUNDLE_DIGEST = "";
    public static final String BUNDLE_ADDRESS = "";
}
